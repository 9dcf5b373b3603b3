"""The inputs of the report: scores, items, samples, curves. A missing file is an error that names the stage to run."""

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from reca.evaluation.benchmark import ItemScore, Scores, read_items, read_scores, values_of
from reca.evaluation.samples import Row, read_manifest
from reca.evaluation.statistics import Values, scored_pairs
from reca.runtime.errors import UserError

T = TypeVar("T")
MUST_MATCH = ("protocol", "judge", "seed", "images_per_prompt", "settings")
"""Fields of the score files that must be equal for base and aligned."""


class MissingInput(UserError):
    """A file that an earlier stage writes is missing, broken or does not fit the others."""


@dataclass(frozen=True)
class BenchmarkResult:
    """One benchmark on one model: the score file, its items, and the samples that were scored."""

    scores: Scores
    items: Sequence[ItemScore]
    """One for each prompt and category."""
    samples: Sequence[Row]
    folder: Path
    """Folder of the sample files."""

    @cached_property
    def items_by_key(self) -> dict[tuple[str, str], ItemScore]:
        """Items by category and prompt id."""
        return {(item.category, item.prompt_id): item for item in self.items}

    @cached_property
    def samples_by_prompt(self) -> dict[str, list[Row]]:
        """Samples by prompt id, in the benchmark's own order."""
        samples: dict[str, list[Row]] = {}
        for sample in self.samples:
            samples.setdefault(str(sample["prompt_id"]), []).append(sample)
        return samples


@dataclass(frozen=True)
class ResultPair:
    """One benchmark on both models, checked to be comparable."""

    base: BenchmarkResult
    aligned: BenchmarkResult

    @property
    def name(self) -> str:
        """The benchmark's name."""
        return self.base.scores.benchmark

    @property
    def results(self) -> tuple[BenchmarkResult, BenchmarkResult]:
        """Base and aligned."""
        return self.base, self.aligned

    @cached_property
    def categories(self) -> dict[str, list[str]]:
        """Prompt ids by category, both in the benchmark's own order."""
        categories: dict[str, list[str]] = {}
        for item in self.base.items:
            categories.setdefault(item.category, []).append(item.prompt_id)
        return categories

    @cached_property
    def values(self) -> tuple[Values, Values]:
        """Scored values of base and aligned, without prompts that could not be scored for both models."""
        return scored_pairs(values_of(self.base.items), values_of(self.aligned.items))


def read_result_pair(outputs: Path, benchmark: str) -> ResultPair:
    """Read one benchmark of both models.

    Raises:
        MissingInput: A file is missing or broken, or base and aligned were measured differently.
    """
    pair = ResultPair(*(read_benchmark_result(outputs, variant, benchmark) for variant in ("base", "aligned")))
    base, aligned = pair.results
    if field := base.scores.first_difference(aligned.scores, MUST_MATCH):
        values = [getattr(result.scores, field) for result in pair.results]
        raise _not_comparable(benchmark, f"{field} is {values[0]!r} in the first and {values[1]!r} in the second")
    if unpaired := sorted(base.items_by_key.keys() ^ aligned.items_by_key.keys()):
        raise _not_comparable(benchmark, f"{len(unpaired)} prompts are in only one of them, such as {unpaired[0][1]!r}")
    if unscored := sorted(set(pair.categories) - set(pair.values[0])):
        raise _not_comparable(benchmark, f"no prompt of {unscored[0]!r} was scored in both")
    return pair


def _not_comparable(benchmark: str, difference: str) -> MissingInput:
    return MissingInput(
        f"outputs/scores/base/{benchmark}.json and outputs/scores/aligned/{benchmark}.json cannot be compared: "
        f"{difference}; make both again: `dvc repro generate@base-{benchmark} generate@aligned-{benchmark} "
        f"score@base-{benchmark} score@aligned-{benchmark}`"
    )


def read_benchmark_result(outputs: Path, variant: str, benchmark: str) -> BenchmarkResult:
    """Read the result of a benchmark for one model.

    Raises:
        MissingInput: A file is missing or broken; the message names it and the stage that writes it.
    """
    folder = outputs / "samples" / variant / benchmark
    score_stage, generate_stage = f"score@{variant}-{benchmark}", f"generate@{variant}-{benchmark}"
    scores = _read(outputs / f"scores/{variant}/{benchmark}.json", read_scores, score_stage)
    items = _read(outputs / f"scores/{variant}/{benchmark}.items.jsonl", read_items, score_stage)
    samples = _read(folder / "manifest.jsonl", lambda path: read_manifest(path.parent), generate_stage)
    if not items:
        raise MissingInput(f"outputs/scores/{variant}/{benchmark}.items.jsonl is empty; {_run_again(score_stage)}")
    return BenchmarkResult(scores, items, samples, folder)


def _run_again(stage: str) -> str:
    return f"run stage {stage} again: `dvc repro {stage}`, or the whole pipeline: `reca run`"


def _read(path: Path, read: Callable[[Path], T], stage: str) -> T:
    if not path.is_file():
        raise MissingInput(f"{path} is missing; {_run_again(stage)}")
    try:
        return read(path)
    except (UserError, OSError) as error:
        raise MissingInput(f"{error} ({_run_again(stage)})") from None


def read_optional(path: Path) -> dict[str, Any]:
    """Read a JSON object; a missing or broken file gives an empty one, and the page says that it is missing."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError):
        return {}
    return value if isinstance(value, dict) else {}


def read_curve(path: Path) -> dict[str, list[float]]:
    """Read the columns of a CSV of numbers (an empty cell is NaN); a missing file has no columns."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        return {}
    rows = list(csv.DictReader(text.splitlines()))
    names = [name for name in (rows[0] if rows else {}) if name]
    return {name: [_number(row.get(name)) for row in rows] for name in names}


def _number(cell: str | None) -> float:
    try:
        return float(cell or "nan")
    except ValueError:
        return float("nan")
