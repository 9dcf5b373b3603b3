"""``generate``: let the base or the aligned model make a benchmark's samples.

Finished batches are kept under the state folder, named by everything that decides what they look like; a killed
run goes on from there. The output folder appears whole at the end.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from reca.benchmarks.base import Benchmark, load_benchmark
from reca.benchmarks.samples import Row, row_key, write_manifest
from reca.config import Config
from reca.digest import file_digest, weights_digest
from reca.errors import UserError
from reca.files import whole_folder, write_json
from reca.progress import Progress
from reca.stages.result import write_result

if TYPE_CHECKING:
    from reca.models.base import UnifiedModel

MODEL = Path("outputs/model")


def generate(config: Config, root: Path, which: str, benchmark: str, *, output: Path | None = None) -> None:
    """Write ``outputs/samples/<which>/<benchmark>``: PNG files, ``manifest.jsonl`` and ``result.json``.

    Args:
        config: The composed configuration.
        root: The project folder.
        which: The ``base`` or the ``aligned`` model.
        benchmark: Its name.
        output: Write here instead of ``outputs/samples/<which>``.

    Raises:
        UserError: The model or the data set that is needed is not there; nothing is known by that name.
    """
    bench = load_benchmark(benchmark, config, root)
    folder = checkpoint_folder(config, root, which)
    checkpoint = weights_digest(folder)
    plan = bench.plan()
    shared = {**config.generate.model_dump(mode="json"), "checkpoint": checkpoint}
    place = which if output is None else "evaluated"
    state = root / config.paths.state / "samples" / place / benchmark / _fingerprint(plan, shared)
    finished = _finished(state)
    pending = [row for row in plan if row_key(row) not in finished]
    done = len(plan) - len(pending)
    progress = Progress(len(plan), "samples", start=done)
    if done:
        print(f"generate {which} {benchmark}: {done} of {len(plan)} samples are there already")
    if pending:
        model = _load(config, folder, root)
        for made in _batches(bench, model, pending, config, state):
            finished |= {row_key(row): row for row in made}
            done += len(made)
            progress.update(done)
    rows = [{**finished[row_key(row)], **shared} for row in plan]
    with whole_folder((output or root / "outputs/samples" / which) / benchmark) as made_here:
        for name in (name for row in rows for name in _files(row)):
            (made_here / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(state / name, made_here / name)
        write_manifest(made_here, rows)
        sections = ("data", "model", "generate", "evaluate")
        write_result(made_here, "generate", config, sections, which=which, checkpoint=checkpoint, expected=len(rows))
    shutil.rmtree(state)


def checkpoint_folder(config: Config, root: Path, which: str) -> Path:
    """Where the weights of ``base`` or ``aligned`` lie.

    Raises:
        UserError: There is no such model, or its folder is missing.
    """
    if which not in ("base", "aligned"):
        raise UserError(f"unknown model {which!r}; known: base, aligned")
    folder = root / (config.model.checkpoint if which == "base" else MODEL)
    if not folder.is_dir():
        restore = "restore it (`git checkout`, `dvc pull`) or set model.checkpoint"
        way_out = restore if which == "base" else "make it with `reca train`"
        raise UserError(f"{folder} is missing: there is no {which} model; {way_out}")
    return folder


def _fingerprint(plan: Sequence[Row], shared: Row) -> str:
    """Everything that decides what the samples look like; not the batch size, not the device."""
    return hashlib.sha256(json.dumps([plan, shared], sort_keys=True).encode()).hexdigest()[:16]


def _load(config: Config, folder: Path, root: Path) -> "UnifiedModel":
    import torch
    from safetensors import SafetensorError

    from reca.models.base import load_model

    name = config.hardware.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(config.hardware.generate_threads)
    try:
        model = load_model(config.model.family, folder, config.model.options(root), torch.device(name))
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"the model in {folder} cannot be loaded: {error}; restore or make it again") from error
    return model.eval()


def _batches(
    bench: Benchmark, model: "UnifiedModel", pending: Sequence[Row], config: Config, state: Path
) -> Iterator[list[Row]]:
    """Make the pending samples batch by batch; each batch is on disk, its index last, before it is yielded."""
    import torch

    from reca.models.base import Sampling

    state.mkdir(parents=True, exist_ok=True)
    sampling = Sampling(**config.generate.model_dump())
    size = config.hardware.generate_batch_size
    for start in range(0, len(pending), size):
        with torch.inference_mode():
            made = bench.make(model, pending[start : start + size], sampling, state)
        digests = {name: file_digest(state / name) for row in made for name in _files(row)}
        part = hashlib.sha256(row_key(made[0]).encode()).hexdigest()[:16]
        write_json(state / f"part-{part}.json", {"rows": made, "files": digests})
        yield made


def _finished(state: Path) -> dict[str, Row]:
    """The samples of earlier attempts whose files are still what they were."""
    rows: dict[str, Row] = {}
    for part in sorted(state.glob("part-*.json")):
        try:
            batch = json.loads(part.read_text())
            whole = {name for name, digest in batch["files"].items() if file_digest(state / name) == digest}
        except (OSError, ValueError, KeyError):
            continue  # a damaged batch is made again
        rows |= {row_key(row): row for row in batch["rows"] if whole.issuperset(_files(row))}
    return rows


def _files(row: Row) -> list[str]:
    return [row[key] for key in ("file", "original", "beside") if key in row]
