"""ImgEdit-Bench: replies, means of the types, the published table, and the UGE suite, which reca does not run."""

from collections.abc import Iterable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

from reca.evaluation.benchmarks.imgedit.rules import (
    DIMENSIONS,
    ITEMS,
    read_official,
    read_strict,
    summarise,
)
from tests.golden.replays.comparison import MEANS, PUBLISHED, Folder, Tally, numbered, read_json

TWO_DIGITS = 5.001e-3
HARD_ITEMS = 47
"""Edits of the UGE suite, one score each."""


def replay(folder: Folder) -> None:
    folder.replay("basic*.json", _basic)
    folder.replay("edge_replies*.json", _edges)
    folder.replay("uge*.json", _hard)
    folder.replay("facts*.json", _facts)
    folder.replay("published_leaderboard*.json", partial(_leaderboard, folder))


def _edges(tally: Tally, path: Path) -> None:
    def compare(name: str, case: dict[str, Any]) -> None:
        tally.case(f"{name}, {case['reply']!r}", case["item_score"], partial(read_official, case["reply"]), MEANS)

    tally.each(numbered(read_json(path)), compare)


def _basic(tally: Tally, path: Path) -> None:
    recorded = read_json(path)
    replies: dict[str, Any] = recorded["replies"]
    scores: list[tuple[str | None, float | None]] = []
    strict = []

    def compare(name: str, case: dict[str, Any]) -> None:
        edit_type = case.get("edit_type")
        tally.case(name, case["item_score"], partial(read_official, case["reply"]), MEANS)
        scores.append((edit_type, read_official(case["reply"])))
        strict.append(edit_type in DIMENSIONS and read_strict(case["reply"], edit_type))

    tally.each(((f"item {key}", case) for key, case in replies.items()), compare)
    typed = [(edit_type, score) for edit_type, score in scores if edit_type is not None]  # the original skips others
    ours = cache(partial(summarise, typed, "official"))
    if "average_by_type" in recorded:
        types = (lambda: dict(ours().types)) if any(score is not None for _, score in typed) else dict
        tally.case("average_by_type", recorded["average_by_type"], types, MEANS)
    if "reca_overall_micro" in recorded:  # RecA's script prints two digits
        tally.case("reca_overall_micro", recorded["reca_overall_micro"], lambda: ours().micro, TWO_DIGITS)
    if "macro_over_types" in recorded:
        tally.case("macro_over_types", recorded["macro_over_types"], lambda: ours().macro, PUBLISHED)
    tally.notes.append(
        f"the strict reading, our default, which the original does not have (it reads {sum(map(bool, strict))} of "
        f"{len(replies)} replies, the original {sum(score is not None for _, score in scores)})"
    )


def _hard(tally: Tally, path: Path) -> None:
    recorded = read_json(path)
    tally.case("mean", recorded["expected"], lambda: official_hard_score(recorded["replies"].values()), MEANS)


def official_hard_score(replies: Iterable[str]) -> float | None:
    """Return the official mean score of the UGE suite; it ignores replies in its own example's form."""
    scores = [score for reply in replies if (score := read_official(reply)) is not None]
    return round(sum(scores) / len(scores), 2) if scores else None


def overall_of_types(types: Mapping[str, float], counts: Mapping[str, int]) -> tuple[float, float]:
    """Return the macro and micro mean of published scores of the types."""
    weight = sum(counts[name] for name in types)
    micro = sum(score * counts[name] for name, score in types.items()) / weight
    return sum(types.values()) / len(types), micro


def _facts(tally: Tally, path: Path) -> None:
    """Compare the recorded facts about the benchmark with our own tables."""
    facts = read_json(path)
    ours = {
        "n": sum(ITEMS.values()),
        "per_type": dict(ITEMS),
        "dimensions": {name: list(three) for name, three in DIMENSIONS.items()},
        "uge_n": HARD_ITEMS,
    }
    for name, expected in facts.items():
        if name in ours:
            tally.case(name, expected, partial(ours.__getitem__, name))
        else:
            tally.notes.append(f"{name}, which our code does not use")


def _leaderboard(folder: Folder, tally: Tally, path: Path) -> None:
    counts = read_json(folder.path / "facts.json")["per_type"] if folder.has("facts.json") else ITEMS

    def compare(name: str, row: dict[str, Any]) -> None:
        macro, micro = overall_of_types(row["per_type"], counts)
        values = {"macro": macro, "micro": micro}
        expected = {which: row[which] for which in values if which in row}
        tally.case(name, expected, lambda: {which: values[which] for which in expected}, PUBLISHED)

    tally.each(read_json(path)["rows"].items(), compare)
    tally.notes.append("published_overall, which is the macro mean in some rows only (see the file's finding)")
