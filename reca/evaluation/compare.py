"""``reca compare A B``: paired differences between two folders of scores, with confidence intervals."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from reca.evaluation.benchmark import Scores, read_items, read_scores, values_of
from reca.evaluation.statistics import BenchmarkDelta, paired_delta, scored_pairs
from reca.runtime.errors import UserError

MUST_MATCH = ("protocol", "judge", "seed", "images_per_prompt")
"""Fields that two comparable scores share; the sampling settings may differ, and are then printed."""


def compare(first: Path, second: Path) -> dict[str, BenchmarkDelta]:
    """Return the differences ``second - first`` of every benchmark that both folders contain.

    Raises:
        UserError: A folder has no scores, they have no benchmark in common, or one was measured differently.
    """
    folders = [scores_folder(first), scores_folder(second)]
    names = [{path.stem for path in folder.glob("*.json")} for folder in folders]
    if not names[0] & names[1]:
        raise UserError(f"{folders[0]} and {folders[1]} have no benchmark in common: {names[0]} and {names[1]}")
    deltas = {}
    for name in sorted(names[0] & names[1]):
        before, after = (read_scores(folder / f"{name}.json") for folder in folders)
        _check_comparable(before, after, folders)
        items = [values_of(read_items(folder / f"{name}.items.jsonl")) for folder in folders]
        try:
            deltas[name] = paired_delta(*scored_pairs(*items), weights=before.weights)
        except (ValueError, KeyError) as error:
            raise UserError(f"{name} cannot be compared: {error}") from None
    return deltas


def scores_folder(path: Path) -> Path:
    """Return the folder with the score files: ``path``, or ``scores`` in it.

    Raises:
        UserError: There are none.
    """
    for folder in (path, path / "scores"):
        if folder.is_dir() and any((folder / f"{file.stem}.items.jsonl").is_file() for file in folder.glob("*.json")):
            return folder
    raise UserError(f"{path} holds no scores: name a folder with BENCHMARK.json and BENCHMARK.items.jsonl")


def _check_comparable(before: Scores, after: Scores, folders: list[Path]) -> None:
    if field := before.first_difference(after, MUST_MATCH):
        values = getattr(before, field), getattr(after, field)
        raise UserError(
            f"{before.benchmark} cannot be compared: {field} is {values[0]} in {folders[0]} "
            f"and {values[1]} in {folders[1]}"
        )
    sampling = [json.dumps(scores.settings.get("generate")) for scores in (before, after)]
    if sampling[0] != sampling[1]:
        print(f"{before.benchmark}: the sampling settings differ, {sampling[0]} and {sampling[1]}")


def table(deltas: dict[str, BenchmarkDelta]) -> str:
    """Format the differences as aligned lines, in per cent; a star marks an interval that does not contain 0."""
    lines = [f"{'benchmark':<14}{'category':<20}{'A':>8}{'B':>8}{'B - A':>9}   interval"]
    for name, benchmark in deltas.items():
        for category, delta in benchmark.by_name().items():
            numbers = f"{100 * delta.base:>8.2f}{100 * delta.aligned:>8.2f}{100 * delta.delta:>+9.2f}"
            star = " *" if delta.low > 0 or delta.high < 0 else ""
            interval = f"[{100 * delta.low:+.2f}, {100 * delta.high:+.2f}]{star}"
            lines.append(f"{name:<14}{category:<20}{numbers}   {interval}")
    return "\n".join(lines)


def as_json(deltas: dict[str, BenchmarkDelta]) -> dict[str, Any]:
    """Return the differences as JSON values: ``{benchmark: {category: {"base": …, "aligned": …, …}}}``."""
    return {
        name: {category: asdict(delta) for category, delta in benchmark.by_name().items()}
        for name, benchmark in deltas.items()
    }
