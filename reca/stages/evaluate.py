"""``reca evaluate``: measure a checkpoint, or images made elsewhere, without a run; ``params.yaml`` stays as it is.

The results are in one folder, ``outputs/evaluations/<name>`` by default: ``samples/<benchmark>``,
``scores/<benchmark>.json`` with ``.items.jsonl``, and ``replies/<benchmark>.jsonl`` of judges at an endpoint.

With ``--stop-early``, the base and the aligned model are measured only until it is settled whether the difference of
their scores reaches a minimum (:mod:`reca.evaluation.early_stopping`). Samples are stored where ``reca generate`` looks
for finished batches, so that a later complete generation makes the rest only; existing samples are reused.
"""

import argparse
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reca.config import Config, compose
from reca.config.evaluate import PUBLISHED, sampling_arguments, sampling_settings
from reca.evaluation.benchmark import Benchmark, load_benchmark
from reca.evaluation.early_stopping import decide, shuffle_prompts
from reca.evaluation.samples import Row, read_manifest, row_key
from reca.runtime.device import choose_device
from reca.runtime.errors import UserError
from reca.runtime.files import write_json
from reca.runtime.hashing import file_digest, json_digest, weights_digest
from reca.runtime.progress import Progress
from reca.stages import generate as generation
from reca.stages.result import read_result
from reca.stages.score import measure

if TYPE_CHECKING:
    from reca.models.base import UnifiedModel

EVALUATIONS = Path("outputs/evaluations")
STOPPABLE = ("scenes", "geneval")
"""Benchmarks with a judge on this machine whose overall score is the plain mean of their categories."""
METHOD = "test by betting for sampling without replacement (Waudby-Smith and Ramdas, 2024), valid at any time"


def evaluate(options: argparse.Namespace, root: Path) -> None:
    """Evaluate a checkpoint or existing images, or compare two checkpoints and stop early.

    Raises:
        UserError: Weights, prompts, judges or images are missing, or an option is out of range.
    """
    if (options.images is None) != (options.benchmark is None):
        raise UserError("--images FOLDER and --benchmark geneval|dpgbench belong together")
    words = [_override(word) for word in options.overrides]
    if options.benchmark is not None:
        words.append(f"evaluate.benchmarks=[{options.benchmark}]")
    config = compose(["evaluate.benchmarks=[scenes]", *words] if options.stop_early else words)
    _fetch(config, root, with_model=options.images is None)
    if options.stop_early:
        _stop_early(config, root, options)
        return
    output = Path(options.output) if options.output else root / EVALUATIONS / _name(config, options)
    for name in config.evaluate.benchmarks:
        bench = load_benchmark(name, config, root)
        if options.images is None:
            _evaluate_checkpoint(bench, config, root, output, options)
        else:
            _evaluate_images(bench, config, Path(options.images), output, options)
    print(f"evaluate: {output}")


def _override(word: str) -> str:
    """Expand ``benchmarks=[…]`` to ``evaluate.benchmarks=[…]``, and let an override add a missing section."""
    key, equals, value = word.partition("=")
    key = f"evaluate.{key}" if key == "benchmarks" or key.partition(".")[0] in PUBLISHED else key
    optional = tuple(f"evaluate.{name}." for name in PUBLISHED)
    return f"++{key}{equals}{value}" if key.startswith(optional) else f"{key}{equals}{value}"


def _name(config: Config, options: argparse.Namespace) -> str:
    if options.images is not None:
        return f"images-{Path(options.images).resolve().name}"
    values = config.to_dict()
    settings = {name: sampling_settings(values["evaluate"][name]) for name in config.evaluate.benchmarks}
    return f"{config.model.name}-{json_digest([values['model'], values['generate'], settings], 8)}"


def _fetch(config: Config, root: Path, with_model: bool) -> None:
    from reca.data.download import fetch_model
    from reca.evaluation.download import fetch as fetch_benchmarks

    if with_model:
        fetch_model(config, root)
    fetch_benchmarks(config, root)


def _evaluate_checkpoint(
    bench: Benchmark, config: Config, root: Path, output: Path, options: argparse.Namespace
) -> None:
    folder = output / "samples" / bench.name
    checkpoint = weights_digest(generation.checkpoint_folder(config, root, "base"))
    if not _has_samples(folder, config, bench.name, checkpoint):
        generation.generate(config, root, "base", bench.name, output=output / "samples")
    if options.grids and bench.name == "dpgbench":
        _write_grids(folder, Path(options.grids))
    _score(bench, config, folder, read_manifest(folder), read_result(folder), output, options)


def _write_grids(folder: Path, target: Path) -> None:
    """Write DPG-Bench's official layout: one file per prompt, with its four images."""
    from PIL import Image

    from reca.evaluation.benchmarks.dpgbench.benchmark import write_grid

    files: dict[str, list[Path]] = {}
    for row in read_manifest(folder):
        files.setdefault(row["prompt_id"], []).append(folder / row["file"])
    target.mkdir(parents=True, exist_ok=True)
    for prompt_id, images in files.items():
        try:
            write_grid([Image.open(image) for image in images], target / f"{prompt_id}.png")
        except (ValueError, OSError) as error:
            raise UserError(f"the images of {prompt_id} make no grid: {error}") from None
    print(f"evaluate: {len(files)} grids are in {target}")


def _has_samples(folder: Path, config: Config, name: str, checkpoint: str) -> bool:
    """Return whether the folder has the samples of these weights and settings."""
    try:
        result = read_result(folder)
    except (FileNotFoundError, ValueError):
        return False
    values, params = config.to_dict(), result["params"]
    same = sampling_settings(params["evaluate"].get(name)) == sampling_settings(values["evaluate"][name])
    old, new = (sampling_arguments(section["generate"], name) for section in (params, values))
    return same and result["checkpoint"] == checkpoint and old == new


def _evaluate_images(bench: Benchmark, config: Config, folder: Path, output: Path, options: argparse.Namespace) -> None:
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder")
    rows = bench.existing_samples(folder)
    existing = [row for row in rows if not row.get("missing")]
    print(f"evaluate: {len(existing)} of {len(rows)} images of {bench.name} are in {folder}")
    categories = dict.fromkeys(row["category"] for row in rows)
    if empty := categories.keys() - {row["category"] for row in existing}:
        raise UserError(
            f"{folder} has no image of {', '.join(sorted(empty))}, without which there is no overall score: add them "
            f"({bench.name} has {', '.join(categories)})"
        )
    result = {"params": {"generate": {"images": str(folder)}}, "checkpoint": f"images:{_digest(folder, existing)}"}
    _score(bench, config, folder, rows, result, output, options)


def _digest(folder: Path, rows: Sequence[Row]) -> str:
    text = "".join(f"{name}\0{file_digest(folder / name)}\n" for name in sorted({row["file"] for row in rows}))
    return hashlib.sha256(text.encode()).hexdigest()


def _score(
    bench: Benchmark,
    config: Config,
    folder: Path,
    rows: Sequence[Row],
    result: Mapping[str, Any],
    output: Path,
    options: argparse.Namespace,
) -> None:
    bench.configure_judge(output / "replies", only_stored=options.from_replies and bench.asks_model)
    if options.dry_run and bench.asks_model:
        print(f"evaluate {bench.name}: {bench.estimate(rows, folder)}")
    elif options.dry_run:
        print(f"evaluate {bench.name}: {len(rows)} samples; no judge is asked, so this costs nothing but time")
    else:
        measure(bench, config, "evaluated", folder, rows, result, output / "scores", not options.from_replies)


@dataclass
class _Side:
    """One of the two compared models, and its samples."""

    config: Config
    root: Path
    variant: str
    checkpoint: Path
    bench: Benchmark
    plan: Sequence[Row]
    generated: int = 0
    """Samples that were generated in this process."""
    used: int = 0
    """Samples that were scored, generated or reused."""

    def __post_init__(self) -> None:
        self.weights = weights_digest(self.checkpoint)
        name = self.bench.name
        shared = {**sampling_arguments(self.config.to_dict()["generate"], name), "checkpoint": self.weights}
        self._state = generation.state_folder(self.config, self.root, self.variant, name, self.plan, shared)
        complete = self.root / "outputs/samples" / self.variant / name
        planned = {row_key(row): {**row, **shared} for row in self.plan}
        self._samples: dict[str, tuple[Path, Row]] = {}
        for row in read_manifest(complete) if (complete / "manifest.jsonl").is_file() else []:
            if planned.get(row_key(row), {"": None}).items() <= row.items():
                self._samples[row_key(row)] = complete, row
        finished = generation.finished_samples(self._state)
        self._samples |= {key: (self._state, row) for key, row in finished.items()}

    @cached_property
    def _model(self) -> "UnifiedModel":
        device = choose_device(self.config.hardware.device)
        return generation.load_checkpoint(self.config, self.checkpoint, self.root, device)

    def scores(self, rows: Sequence[Row]) -> dict[str, float]:
        """Return each prompt's mean score; missing samples are generated first.

        Raises:
            UserError: An image could not be judged.
        """
        if to_generate := [row for row in rows if row_key(row) not in self._samples]:
            batch = generation.make_batch(self.bench, self._model, to_generate, self.config, self._state)
            self._samples |= {row_key(row): (self._state, row) for row in batch}
            self.generated += len(to_generate)
        self.used += len(rows)
        by_folder: dict[Path, list[Row]] = {}
        for folder, sample in (self._samples[row_key(row)] for row in rows):
            by_folder.setdefault(folder, []).append(sample)
        values: dict[str, list[float]] = {}
        for folder, samples in by_folder.items():
            for item in self.bench.score(samples, folder):
                if None in item.values:
                    raise UserError(f"a sample of {item.prompt_id} in {folder} could not be judged: remove it")
                values.setdefault(item.prompt_id, []).extend(value for value in item.values if value is not None)
        return {prompt: sum(images) / len(images) for prompt, images in values.items()}


def _stop_early(config: Config, root: Path, options: argparse.Namespace) -> None:
    """Decide for each benchmark, and write ``outputs/evaluations/early-stopping-<benchmark>.json``."""
    if not 0 < options.error_rate < 1 or not -1 < options.minimum < 1:
        raise UserError("--error-rate must be between 0 and 1, --minimum between -1 and 1 (0.02 is two points)")
    if options.images or not set(config.evaluate.benchmarks) <= set(STOPPABLE):
        raise UserError(f"--stop-early compares two checkpoints on {' or '.join(STOPPABLE)}: set benchmarks=[…]")
    base = generation.checkpoint_folder(config, root, "base")
    aligned = options.aligned or generation.checkpoint_folder(config, root, "aligned")
    if not aligned.is_dir():
        raise UserError(f"{aligned} is not a folder: --aligned names the folder of the aligned weights")
    for name in config.evaluate.benchmarks:
        bench = load_benchmark(name, config, root)
        plan = bench.plan()
        sides = [
            _Side(config, root, variant, checkpoint, bench, plan)
            for variant, checkpoint in (("base", base), ("aligned", aligned))
        ]
        _decide(sides, config, options, root / EVALUATIONS / f"early-stopping-{name}.json")


def _decide(sides: Sequence[_Side], config: Config, options: argparse.Namespace, path: Path) -> None:
    plan, name = sides[0].plan, sides[0].bench.name
    categories: dict[str, list[str]] = {}
    for prompt, category in {row["prompt_id"]: row["category"] for row in plan}.items():
        categories.setdefault(category, []).append(prompt)
    sizes = {category: len(prompts) for category, prompts in categories.items()}
    differences = _differences(shuffle_prompts(categories, config.seed), sides, config.hardware.generate_batch_size)
    outcome = decide(differences, sizes, options.minimum, options.error_rate)
    total, generated, used = 2 * len(plan), sum(side.generated for side in sides), sum(side.used for side in sides)
    record = {
        "benchmark": name,
        **asdict(outcome),
        "images": total,
        "images_generated": generated,
        "images_reused": used - generated,
        "images_saved": total - used,
        "minimum": options.minimum,
        "seed": config.seed,
        "error_rate": options.error_rate if outcome.early else 0.0,
        "method": METHOD,
        **{side.variant: side.weights for side in sides},
    }
    write_json(path, record)
    relation = "is at least" if outcome.decision == "reached" else "is less than"
    sure = f"all prompts would say otherwise with at most {options.error_rate:.1%}" if outcome.early else "exactly"
    print(
        f"evaluate {name}: {outcome.decision} after {outcome.num_measured} of {outcome.num_prompts} prompts: "
        f"aligned - base {relation} {100 * options.minimum:+.2f} points ({sure})\n"
        f"evaluate {name}: {generated} images generated, {used - generated} reused, {total - used} of {total} saved; "
        f"{METHOD}"
    )


def _differences(
    order: Sequence[tuple[str, str]], sides: Sequence[_Side], batch_size: int
) -> Iterator[tuple[str, float]]:
    """Yield every prompt's category and difference aligned - base; samples are generated in batches."""
    rows: dict[str, list[Row]] = {}
    for row in sides[0].plan:
        rows.setdefault(row["prompt_id"], []).append(row)
    progress = Progress(len(order), "prompts")
    prompts_per_batch = max(1, batch_size * len(order) // len(sides[0].plan))
    for start in range(0, len(order), prompts_per_batch):
        batch = order[start : start + prompts_per_batch]
        base, aligned = (side.scores([row for _, prompt in batch for row in rows[prompt]]) for side in sides)
        progress.update(start + len(batch))
        yield from ((category, aligned[prompt] - base[prompt]) for category, prompt in batch)
