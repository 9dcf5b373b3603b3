"""What the report reads: scores, what the scorer saw, samples, curves. Missing files are named, with the way out."""

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

from reca.evaluation.benchmark import ItemScore, Scores, read_items, read_scores, values_of
from reca.evaluation.samples import Row, read_manifest
from reca.evaluation.statistics import Values, scored_pairs
from reca.runtime.errors import UserError

Which = Literal["base", "aligned"]
Record = dict[str, Any]
Read = TypeVar("Read")
COMPARABLE = ("protocol", "judge", "seed", "images_per_prompt", "settings")
"""What must be equal in the score files of base and aligned."""


class MissingInput(UserError):
    """A file that an earlier stage writes is missing, broken or does not fit the others."""


@dataclass(frozen=True)
class Measured:
    """One benchmark on one model: the score file, its items, and the samples that were scored."""

    scores: Scores
    items: Sequence[ItemScore]
    """One for each prompt and category."""
    samples: Sequence[Row]
    folder: Path
    """Where the sample files lie."""

    @cached_property
    def item(self) -> dict[tuple[str, str], ItemScore]:
        """Items by category and prompt id."""
        return {(item.category, item.prompt_id): item for item in self.items}

    @cached_property
    def samples_of(self) -> dict[str, list[Row]]:
        """Samples by prompt id, in the benchmark's own order."""
        found: dict[str, list[Row]] = {}
        for sample in self.samples:
            found.setdefault(str(sample["prompt_id"]), []).append(sample)
        return found


@dataclass(frozen=True)
class Pair:
    """One benchmark on both models, checked to be comparable."""

    base: Measured
    aligned: Measured

    @property
    def name(self) -> str:
        """The benchmark's name."""
        return self.base.scores.benchmark

    @property
    def sides(self) -> tuple[Measured, Measured]:
        """Base and aligned."""
        return self.base, self.aligned

    @cached_property
    def categories(self) -> dict[str, list[str]]:
        """Prompt ids by category, both in the benchmark's own order."""
        found: dict[str, list[str]] = {}
        for item in self.base.items:
            found.setdefault(item.category, []).append(item.prompt_id)
        return found

    @cached_property
    def values(self) -> tuple[Values, Values]:
        """Scored values of base and aligned.

        A prompt that could be scored on one side only makes no pair and is left out on both; the score files say how
        many values failed.
        """
        return scored_pairs(values_of(self.base.items), values_of(self.aligned.items))


def read_pair(outputs: Path, benchmark: str) -> Pair:
    """Both measurements of one benchmark.

    Raises:
        MissingInput: A file is missing or broken, or base and aligned were measured differently.
    """
    pair = Pair(read_measured(outputs, "base", benchmark), read_measured(outputs, "aligned", benchmark))
    base, aligned = pair.sides
    if what := base.scores.unlike(aligned.scores, COMPARABLE):
        before, after = getattr(base.scores, what), getattr(aligned.scores, what)
        raise _unlike(benchmark, f"{what} is {before!r} in the one and {after!r} in the other")
    if odd := sorted(base.item.keys() ^ aligned.item.keys()):
        raise _unlike(benchmark, f"{len(odd)} prompts are in one of them only, such as {odd[0][1]!r}")
    if missing := sorted(set(pair.categories) - set(pair.values[0])):
        raise _unlike(benchmark, f"no prompt of {missing[0]!r} was scored in both")
    return pair


def _unlike(benchmark: str, difference: str) -> MissingInput:
    return MissingInput(
        f"outputs/scores/base/{benchmark}.json and outputs/scores/aligned/{benchmark}.json cannot be compared: "
        f"{difference}; make both anew: `dvc repro generate@base-{benchmark} generate@aligned-{benchmark} "
        f"score@base-{benchmark} score@aligned-{benchmark}`"
    )


def read_measured(outputs: Path, which: Which, benchmark: str) -> Measured:
    """One benchmark on one model.

    Raises:
        MissingInput: A file is missing or broken; the message names it and the stage that writes it.
    """
    folder = outputs / "samples" / which / benchmark
    score_stage, generate_stage = f"score@{which}-{benchmark}", f"generate@{which}-{benchmark}"
    scores = _read(outputs / f"scores/{which}/{benchmark}.json", read_scores, score_stage)
    items = _read(outputs / f"scores/{which}/{benchmark}.items.jsonl", read_items, score_stage)
    samples = _read(folder / "manifest.jsonl", lambda path: read_manifest(path.parent), generate_stage)
    if not items:
        raise MissingInput(f"outputs/scores/{which}/{benchmark}.items.jsonl is empty; {_again(score_stage)}")
    return Measured(scores, items, samples, folder)


def _again(stage: str) -> str:
    return f"run stage {stage} again: `dvc repro {stage}`, or the whole job: `reca run`"


def _read(path: Path, read: Callable[[Path], Read], stage: str) -> Read:
    if not path.is_file():
        raise MissingInput(f"{path} is missing; {_again(stage)}")
    try:
        return read(path)
    except (UserError, OSError) as error:
        raise MissingInput(f"{error} ({_again(stage)})") from None


def read_optional(path: Path) -> Record:
    """A JSON object, or an empty one where there is none or a broken one: the page says what it lacks."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError):
        return {}
    return value if isinstance(value, dict) else {}


def read_curve(path: Path) -> dict[str, list[float]]:
    """Columns of a CSV of numbers (an empty cell is NaN); no file, no columns."""
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
