"""``reca gate``: does the aligned model beat the base by so much? Both draw only until that is settled.

Prompts are drawn and judged in a random order, both models on each, until :mod:`reca.evaluation.early_stopping`
decides. What was drawn lies where ``reca generate`` looks for finished batches, so that a later complete generation
draws the rest only; and samples that are complete already, as the base's often are, are not drawn again.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from reca.config import Config, compose
from reca.evaluation.benchmark import Benchmark, load_benchmark
from reca.evaluation.early_stopping import Outcome, decide, order_of
from reca.evaluation.samples import Row, read_manifest, row_key
from reca.runtime.distributed import choose_device
from reca.runtime.errors import UserError
from reca.runtime.files import write_json
from reca.runtime.hashing import weights_digest
from reca.runtime.progress import Progress
from reca.stages.generate import (
    checkpoint_folder,
    finished_samples,
    load_checkpoint,
    make_batch,
    state_folder,
)

if TYPE_CHECKING:
    from reca.models.base import UnifiedModel

BENCHMARKS = ("scenes", "geneval")
"""Judged here, prompt by prompt, and their overall score is the plain mean of their categories."""
RESULTS = Path("outputs/evaluations")
METHOD = "test by betting for sampling without replacement (Waudby-Smith and Ramdas, 2024), valid at any time"


@dataclass
class Side:
    """One of the two models, and the samples that it has."""

    config: Config
    root: Path
    variant: str
    folder: Path
    """Of its weights."""
    bench: Benchmark
    plan: Sequence[Row]
    drawn: int = 0
    """Samples that were made now."""
    used: int = 0
    """Samples that were looked at, made now or before."""
    _known: dict[str, tuple[Path, Row]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shared = {**self.config.generate.model_dump(mode="json"), "checkpoint": weights_digest(self.folder)}
        self._state = state_folder(self.config, self.root, self.variant, self.bench.name, self.plan, shared)
        made = self.root / "outputs/samples" / self.variant / self.bench.name
        wanted = {row_key(row): {**row, **shared} for row in self.plan}
        for row in read_manifest(made) if (made / "manifest.jsonl").is_file() else []:
            if wanted.get(row_key(row), {"": None}).items() <= row.items():
                self._known[row_key(row)] = made, row
        self._known |= {key: (self._state, row) for key, row in finished_samples(self._state).items()}

    @cached_property
    def _model(self) -> "UnifiedModel":
        device = choose_device(self.config.hardware.device)
        return load_checkpoint(self.config, self.folder, self.root, device)

    def values(self, rows: Sequence[Row]) -> dict[str, float]:
        """Prompt -> mean score of its images, drawn first where they are missing.

        Raises:
            UserError: An image could not be judged.
        """
        if missing := [row for row in rows if row_key(row) not in self._known]:
            made = make_batch(self.bench, self._model, missing, self.config, self._state)
            self._known |= {row_key(row): (self._state, row) for row in made}
            self.drawn += len(missing)
        self.used += len(rows)
        found: dict[Path, list[Row]] = {}
        for row in rows:
            folder, sample = self._known[row_key(row)]
            found.setdefault(folder, []).append(sample)
        scores: dict[str, list[float]] = {}
        for folder, samples in found.items():
            for item in self.bench.score(samples, folder):
                if None in item.values:
                    raise UserError(f"a sample of {item.prompt_id} in {folder} could not be judged: remove it")
                scores.setdefault(item.prompt_id, []).extend(value for value in item.values if value is not None)
        return {prompt: sum(values) / len(values) for prompt, values in scores.items()}


def gate(options: argparse.Namespace, root: Path) -> None:
    """Decide, and write ``outputs/evaluations/gate-<benchmark>.json``.

    Raises:
        UserError: Weights, judges or a benchmark are missing, or an option is out of range.
    """
    if not 0 < options.error_rate < 1 or not -1 < options.minimum < 1:
        raise UserError("--error-rate lies between 0 and 1, --minimum between -1 and 1 (0.02 is two points)")
    name = options.benchmark
    config = compose([*options.overrides, f"evaluate.benchmarks=[{name}]"])
    bench = load_benchmark(name, config, root)
    plan = bench.plan()
    base, aligned = checkpoint_folder(config, root, "base"), options.aligned
    aligned = aligned or checkpoint_folder(config, root, "aligned")
    if not aligned.is_dir():
        raise UserError(f"{aligned} is no folder: --aligned names the folder of the aligned weights")
    sides = [
        Side(config, root, variant, folder, bench, plan) for variant, folder in (("base", base), ("aligned", aligned))
    ]
    categories: dict[str, dict[str, None]] = {}
    for row in plan:
        categories.setdefault(row["category"], {})[row["prompt_id"]] = None
    order = order_of({category: list(prompts) for category, prompts in categories.items()}, options.seed)
    sizes = {category: len(prompts) for category, prompts in categories.items()}
    differences = _differences(order, plan, sides, config.hardware.generate_batch_size)
    outcome = decide(differences, sizes, options.minimum, options.error_rate, bench.images_per_prompt)
    _tell(outcome, sides, name, options, root)


def _differences(
    order: Sequence[tuple[str, str]], plan: Sequence[Row], sides: Sequence[Side], batch_size: int
) -> Iterator[tuple[str, float]]:
    """Aligned minus base, prompt by prompt; made in batches, but told one by one."""
    rows: dict[str, list[Row]] = {}
    for row in plan:
        rows.setdefault(row["prompt_id"], []).append(row)
    progress = Progress(len(order), "prompts")
    together = max(1, batch_size * len(order) // len(plan))
    for start in range(0, len(order), together):
        batch = order[start : start + together]
        before, after = (side.values([row for _, prompt in batch for row in rows[prompt]]) for side in sides)
        progress.update(start + len(batch))
        yield from ((category, after[prompt] - before[prompt]) for category, prompt in batch)


def _tell(outcome: Outcome, sides: Sequence[Side], name: str, options: argparse.Namespace, root: Path) -> None:
    images = sum(len(side.plan) for side in sides)
    drawn, used = (sum(getattr(side, what) for side in sides) for what in ("drawn", "used"))
    counts = {"images": images, "images_drawn": drawn, "images_found": used - drawn, "images_saved": images - used}
    certainty = {"error_rate": options.error_rate if outcome.early else 0.0, "method": METHOD}
    facts = {**asdict(outcome), **counts, "minimum": options.minimum, "seed": options.seed, **certainty}
    facts |= {side.variant: weights_digest(side.folder) for side in sides}
    write_json(root / RESULTS / f"gate-{name}.json", {"benchmark": name, **facts})
    is_so = "is at least" if outcome.decision == "reached" else "is less than"
    sure = f"all prompts would say otherwise with at most {options.error_rate:.1%}" if outcome.early else "exactly"
    print(
        f"gate {name}: {outcome.decision} after {outcome.measured} of {outcome.total} prompts: "
        f"aligned - base {is_so} {100 * options.minimum:+.2f} points ({sure})"
    )
    print(f"gate {name}: {drawn} images drawn, {used - drawn} found, {images - used} of {images} saved; {METHOD}")
