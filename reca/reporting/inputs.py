"""What the report reads: scores, what the scorer saw, samples, curves. Missing files are named, with the way out."""

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

from reca.errors import UserError

Which = Literal["base", "aligned"]
WHICH: tuple[Which, Which] = ("base", "aligned")
Record = dict[str, Any]
Read = TypeVar("Read")


class MissingInput(UserError):
    """A file that an earlier stage writes is missing, broken or does not fit the others."""


@dataclass(frozen=True)
class Measured:
    """One benchmark on one model: the score file, its items, and the samples that were scored."""

    benchmark: str
    which: Which
    score: Record
    items: list[Record]
    samples: list[Record]
    folder: Path
    """Where the sample files lie."""

    @cached_property
    def item(self) -> dict[str, Record]:
        """Items by prompt id."""
        return {str(item["prompt_id"]): item for item in self.items}

    @cached_property
    def samples_of(self) -> dict[str, list[Record]]:
        """Samples by prompt id, in the benchmark's own order."""
        found: dict[str, list[Record]] = {}
        for sample in self.samples:
            found.setdefault(str(sample["prompt_id"]), []).append(sample)
        return found


@dataclass(frozen=True)
class Pair:
    """One benchmark on both models, checked to be comparable."""

    base: Measured
    aligned: Measured

    @property
    def benchmark(self) -> str:
        """The benchmark's name."""
        return self.base.benchmark

    @cached_property
    def categories(self) -> dict[str, list[str]]:
        """Prompt ids by category, both in the benchmark's own order."""
        found: dict[str, list[str]] = {}
        for item in self.base.items:
            found.setdefault(str(item["category"]), []).append(str(item["prompt_id"]))
        return found


def read_pair(outputs: Path, benchmark: str) -> Pair:
    """Both measurements of one benchmark.

    Raises:
        MissingInput: A file is missing or broken, or base and aligned were measured differently.
    """
    base, aligned = (read_measured(outputs, which, benchmark) for which in WHICH)
    for what in ("seed", "images_per_prompt", "protocol", "judge", "settings"):
        if base.score.get(what) != aligned.score.get(what):
            _refuse_pair(benchmark, f"{what} is {base.score.get(what)!r} and {aligned.score.get(what)!r}")
    if base.item.keys() != aligned.item.keys():
        odd = sorted(base.item.keys() ^ aligned.item.keys())
        _refuse_pair(benchmark, f"{len(odd)} prompts are on one side only, such as {odd[0]!r}")
    return Pair(base, aligned)


def _refuse_pair(benchmark: str, difference: str) -> None:
    raise MissingInput(
        f"outputs/scores/base/{benchmark}.json and outputs/scores/aligned/{benchmark}.json cannot be compared: "
        f"{difference}; run {_again('generate', 'base', benchmark)} and {_again('generate', 'aligned', benchmark)}, "
        "then score both"
    )


def read_measured(outputs: Path, which: Which, benchmark: str) -> Measured:
    """One benchmark on one model.

    Raises:
        MissingInput: A file is missing or broken; the message names it and the stage that writes it.
    """
    score_again, generate_again = _again("score", which, benchmark), _again("generate", which, benchmark)
    scores, folder = outputs / "scores" / which, outputs / "samples" / which / benchmark
    score = _read(scores / f"{benchmark}.json", json.loads, score_again)
    items = _read(scores / f"{benchmark}.items.jsonl", _lines, score_again)
    samples = _read(folder / "manifest.jsonl", _lines, generate_again)
    for key in ("overall", "categories"):
        if key not in score:
            raise MissingInput(f"{scores / f'{benchmark}.json'} has no {key!r}; run {score_again} again")
    if not items:
        raise MissingInput(f"{scores / f'{benchmark}.items.jsonl'} is empty; run {score_again} again")
    return Measured(benchmark, which, score, items, samples, folder)


def _again(stage: str, which: str, benchmark: str) -> str:
    return f"`dvc repro -s {stage}-{which}@{benchmark}`"


def _read(path: Path, parse: Callable[[str], Read], again: str) -> Read:
    if not path.is_file():
        raise MissingInput(f"{path} is missing; run {again} (or the whole job: `reca run`)")
    try:
        return parse(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise MissingInput(f"{path} cannot be read ({error}); run {again} again") from None


def _lines(text: str) -> list[Record]:
    return [json.loads(line) for line in text.splitlines() if line.strip()]


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
