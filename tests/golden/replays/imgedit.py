"""ImgEdit-Bench: replies, means of the types, and the published table."""

from functools import partial
from pathlib import Path
from typing import Any

from reca.benchmarks.rules.imgedit import (
    DIMENSIONS,
    HARD_ITEMS,
    ITEMS,
    hard_score,
    overall_of_types,
    read_official,
    read_strict,
    summarise,
)
from tests.golden.replays.comparison import MEANS, PUBLISHED, Folder, Tally, read_json

TWO_DIGITS = 5.001e-3


def replay(folder: Folder) -> None:
    folder.replay("basic*.json", _basic)
    folder.replay("edge_replies*.json", _edges)
    folder.replay("uge*.json", _hard)
    folder.replay("facts*.json", _facts)
    folder.replay("published_leaderboard*.json", partial(_leaderboard, folder))


def _edges(tally: Tally, path: Path) -> None:
    for case in read_json(path):
        tally.case(repr(case["reply"]), case["item_score"], partial(read_official, case["reply"]), MEANS)


def _basic(tally: Tally, path: Path) -> None:
    recorded = read_json(path)
    replies: dict[str, Any] = recorded["replies"]
    for key, case in replies.items():
        tally.case(f"item {key}", case["item_score"], partial(read_official, case["reply"]), MEANS)
    scores = [(case["edit_type"], read_official(case["reply"])) for case in replies.values()]
    ours = summarise(scores, "official")
    if "average_by_type" in recorded:
        tally.case("average_by_type", recorded["average_by_type"], lambda: dict(ours.types), MEANS)
    if "reca_overall_micro" in recorded:  # RecA's script prints two digits
        tally.case("reca_overall_micro", recorded["reca_overall_micro"], lambda: ours.micro, TWO_DIGITS)
    if "macro_over_types" in recorded:
        tally.case("macro_over_types", recorded["macro_over_types"], lambda: ours.macro, PUBLISHED)
    strict = [
        read_strict(case["reply"], case["edit_type"]) for case in replies.values() if case["edit_type"] in DIMENSIONS
    ]
    tally.notes.append(
        f"the strict reading, our default, which the original does not have (it reads {sum(map(bool, strict))} of "
        f"{len(replies)} replies, the original {ours.scored})"
    )


def _hard(tally: Tally, path: Path) -> None:
    recorded = read_json(path)
    tally.case("mean", recorded["expected"], lambda: hard_score(recorded["replies"].values(), "official")[0], MEANS)


def _facts(tally: Tally, path: Path) -> None:
    """What is known of the benchmark: our own tables must say the same."""
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
    for name, row in read_json(path)["rows"].items():
        expected = {which: row[which] for which in ("macro", "micro") if which in row}
        macro, micro = overall_of_types(row["per_type"], counts)
        values = {"macro": macro, "micro": micro}
        tally.case(name, expected, lambda e=expected, v=values: {which: v[which] for which in e}, PUBLISHED)
    tally.notes.append("published_overall, which is the macro mean in some rows only (see the file's finding)")
