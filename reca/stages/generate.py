"""``generate``: make a benchmark's samples with the base or the aligned model.

Finished batches are stored in the state folder, under a digest of everything that changes them; a killed run resumes
from there. The output folder appears at the end, complete. The batches do not depend on the number of devices.
"""

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from reca.config import Config
from reca.config.evaluate import sampling_arguments
from reca.evaluation.benchmark import Benchmark, load_benchmark
from reca.evaluation.samples import Row, row_key, write_manifest
from reca.runtime.device import choose_device
from reca.runtime.errors import UserError
from reca.runtime.fan_out import fan_out
from reca.runtime.files import atomic_folder, write_json
from reca.runtime.hashing import file_digest, json_digest, weights_digest
from reca.runtime.progress import Progress
from reca.runtime.signals import end_with_parent
from reca.stages.result import write_result

if TYPE_CHECKING:
    import torch

    from reca.models.base import UnifiedModel

MODEL = Path("outputs/model")


def generate(config: Config, root: Path, variant: str, benchmark: str, *, output: Path | None = None) -> None:
    """Write ``outputs/samples/<variant>/<benchmark>``: PNG files, ``manifest.jsonl`` and ``result.json``.

    Args:
        config: The composed configuration.
        root: The project folder.
        variant: The ``base`` or the ``aligned`` model.
        benchmark: Name of the benchmark.
        output: Write here instead of ``outputs/samples/<variant>``.

    Raises:
        UserError: The model or the data set is missing, or the model or the benchmark is unknown.
    """
    end_with_parent()
    bench = load_benchmark(benchmark, config, root)
    folder = checkpoint_folder(config, root, variant)
    checkpoint = weights_digest(folder)
    sampling = sampling_arguments(config.to_dict()["generate"], benchmark)
    if benchmark in config.generate.benchmarks:
        print(f"{benchmark} has its own sampling: {json.dumps(sampling)}", flush=True)
    shared = {**sampling, "checkpoint": checkpoint}
    owner = variant if output is None else "evaluated"
    plan = bench.plan()
    state = state_folder(config, root, owner, benchmark, plan, shared)
    finished = _finish(bench, plan, state, config, root, folder)
    rows = [{**finished[row_key(row)], **shared} for row in plan]
    with atomic_folder((output or root / "outputs/samples" / variant) / benchmark) as target:
        for name in (name for row in rows for name in _files(row)):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(state / name, target / name)
        write_manifest(target, rows)
        sections = ("data", "model", "generate", "evaluate")
        write_result(target, "generate", config, sections, variant=variant, checkpoint=checkpoint, expected=len(rows))
    shutil.rmtree(state)


def checkpoint_folder(config: Config, root: Path, variant: str) -> Path:
    """Return the folder of the weights of ``base`` or ``aligned``.

    Raises:
        UserError: There is no such model, or its folder is missing.
    """
    if variant not in ("base", "aligned"):
        raise UserError(f"unknown model {variant!r}; known: base, aligned")
    folder = root / (config.model.checkpoint if variant == "base" else MODEL)
    if not folder.is_dir():
        restore = "restore it (`git checkout`, `dvc pull`) or set model.checkpoint"
        remedy = restore if variant == "base" else "make it with `reca train`"
        raise UserError(f"{folder} is missing: there is no {variant} model; {remedy}")
    return folder


def state_folder(config: Config, root: Path, owner: str, benchmark: str, plan: Sequence[Row], shared: Row) -> Path:
    """Return the folder of finished batches, named by the plan and the settings, not by batch size or device."""
    fingerprint = json_digest([plan, shared], 16)
    return root / config.paths.state / "samples" / owner / benchmark / fingerprint


def load_checkpoint(config: Config, folder: Path, root: Path, device: "torch.device") -> "UnifiedModel":
    """Load the configured family with the weights in ``folder``, in evaluation mode.

    Raises:
        UserError: The weights cannot be loaded.
    """
    import torch

    from reca.models.loading import load_base

    torch.set_num_threads(config.hardware.generate_threads)
    return load_base(config.model.family, folder, config.model.load_options(root), device)


def _finish(
    bench: Benchmark, plan: Sequence[Row], state: Path, config: Config, root: Path, checkpoint: Path
) -> dict[str, Row]:
    """Make the samples that earlier attempts have not, and return all by key."""
    finished = finished_samples(state)
    done, size = len(finished), config.hardware.generate_batch_size
    if done:
        print(f"{done} of {len(plan)} samples of {bench.name} exist already", flush=True)
    # The whole plan is split, not the missing rows: a sample's batch does not depend on attempts or devices.
    batches = [plan[start : start + size] for start in range(0, len(plan), size)]
    unfinished = [[row for row in batch if row_key(row) not in finished] for batch in batches]
    progress = Progress(len(plan), "samples", start=done)
    make_worker = partial(_SampleMaker, bench, config, root, checkpoint, state)
    for samples in fan_out([batch for batch in unfinished if batch], make_worker, config.hardware):
        done += samples
        progress.update(done)
    return finished_samples(state)


class _SampleMaker:
    """Makes batches of samples on one device; yields their sizes."""

    def __init__(self, bench: Benchmark, config: Config, root: Path, checkpoint: Path, state: Path) -> None:
        self._bench, self._config, self._state = bench, config, state
        self._model = load_checkpoint(config, checkpoint, root, choose_device(config.hardware.device))

    def __call__(self, batches: Iterable[Sequence[Row]]) -> Iterator[int]:
        for batch in batches:
            yield len(make_batch(self._bench, self._model, batch, self._config, self._state))


def make_batch(bench: Benchmark, model: "UnifiedModel", batch: Sequence[Row], config: Config, state: Path) -> list[Row]:
    """Make some samples in ``state``; their index is written last, so samples with an index are complete."""
    import torch

    from reca.models.sampling import Sampling

    state.mkdir(parents=True, exist_ok=True)
    with torch.inference_mode():
        settings = sampling_arguments(config.to_dict()["generate"], bench.name)
        rows = bench.make(model, batch, Sampling(**settings), state)
    digests = {name: file_digest(state / name) for row in rows for name in _files(row)}
    part = hashlib.sha256("\0".join(map(row_key, rows)).encode()).hexdigest()[:16]
    write_json(state / f"part-{part}.json", {"rows": rows, "files": digests})
    return rows


def finished_samples(state: Path) -> dict[str, Row]:
    """Return the samples of earlier attempts whose files are intact."""
    rows: dict[str, Row] = {}
    for part in sorted(state.glob("part-*.json")):
        try:
            batch = json.loads(part.read_text())
            intact = {name for name, digest in batch["files"].items() if file_digest(state / name) == digest}
        except (OSError, ValueError, KeyError):
            continue  # a damaged batch is made again
        rows |= {row_key(row): row for row in batch["rows"] if intact.issuperset(_files(row))}
    return rows


def _files(row: Row) -> list[str]:
    return [row[key] for key in ("file", "original", "metadata_file") if key in row]
