"""``reca compare A B``: differences between two folders of scores, paired over the same prompts, with intervals."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from reca.evaluation.benchmark import Scores, read_items, read_scores, values_of
from reca.evaluation.statistics import OVERALL, Delta, paired_delta, scored_pairs
from reca.runtime.errors import UserError

MUST_AGREE = ("protocol", "judge", "seed", "images_per_prompt")
"""What two scores must have in common to be compared; how the images were drawn may differ, and is told."""


def compare(first: Path, second: Path, confidence: float = 0.95, draws: int = 4000) -> dict[str, dict[str, Delta]]:
    """Deltas ``second - first`` of every benchmark that both folders hold.

    Raises:
        UserError: A folder holds no scores, they have no benchmark in common, or one was measured differently.
    """
    folders = [scores_folder(first), scores_folder(second)]
    names = [{path.stem for path in folder.glob("*.json")} for folder in folders]
    if not names[0] & names[1]:
        raise UserError(f"{folders[0]} and {folders[1]} have no benchmark in common: {names[0]} and {names[1]}")
    found = {}
    for name in sorted(names[0] & names[1]):
        before, after = (read_scores(folder / f"{name}.json") for folder in folders)
        _check(before, after, folders)
        items = [values_of(read_items(folder / f"{name}.items.jsonl")) for folder in folders]
        pairs = scored_pairs(*items)
        try:
            found[name] = paired_delta(*pairs, confidence, draws, weights=before.weights)
        except (ValueError, KeyError) as error:
            raise UserError(f"{name} cannot be compared: {error}") from None
    return found


def scores_folder(path: Path) -> Path:
    """The folder with the score files: ``path``, or ``scores`` in it.

    Raises:
        UserError: There are none.
    """
    for folder in (path, path / "scores"):
        if folder.is_dir() and any((folder / f"{file.stem}.items.jsonl").is_file() for file in folder.glob("*.json")):
            return folder
    raise UserError(f"{path} holds no scores (BENCHMARK.json beside BENCHMARK.items.jsonl): name such a folder")


def _check(before: Scores, after: Scores, folders: list[Path]) -> None:
    if what := before.first_difference(after, MUST_AGREE):
        one, two = getattr(before, what), getattr(after, what)
        raise UserError(
            f"{before.benchmark} cannot be compared: {what} is {one} in {folders[0]} and {two} in {folders[1]}"
        )
    if before.settings.get("generate") != after.settings.get("generate"):
        drawn = [json.dumps(scores.settings.get("generate")) for scores in (before, after)]
        print(f"{before.benchmark}: drawn differently, {drawn[0]} and {drawn[1]}")


def table(found: dict[str, dict[str, Delta]]) -> str:
    """The deltas as aligned lines, in per cent; a star where the interval does not contain 0."""
    lines = [f"{'benchmark':<14}{'category':<20}{'A':>8}{'B':>8}{'B - A':>9}   interval"]
    for name, deltas in found.items():
        for category in (OVERALL, *(key for key in deltas if key != OVERALL)):
            one = deltas[category]
            numbers = f"{100 * one.base:>8.2f}{100 * one.aligned:>8.2f}{100 * one.delta:>+9.2f}"
            star = " *" if one.low > 0 or one.high < 0 else ""
            lines.append(f"{name:<14}{category:<20}{numbers}   [{100 * one.low:+.2f}, {100 * one.high:+.2f}]{star}")
    return "\n".join(lines)


def as_json(found: dict[str, dict[str, Delta]]) -> dict[str, Any]:
    """The deltas for programs."""
    return {name: {category: asdict(one) for category, one in deltas.items()} for name, deltas in found.items()}
