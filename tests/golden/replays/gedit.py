"""GEdit-Bench: replies, single edits, and the statistics of many."""

import csv
import math
import re
from functools import partial
from pathlib import Path
from typing import Any

from reca.evaluation.benchmarks.gedit.rules import JudgedEdit, Means, item_score, parse_official, summarise
from tests.golden.replays.comparison import MEANS, Folder, Tally, Unusable, numbered, read_json

MEASURES = ("semantics", "quality", "overall")
LAST_DIGIT = 5.001e-4
"""Tolerance of numbers printed with three digits."""


def replay(folder: Folder) -> None:
    folder.replay("reply_parser*.json", _parser)
    folder.replay("viescore_min_sqrt*.json", _single)
    folder.supports("scores.csv")
    folder.replay("statistics*.json", _statistics, needs=("scores.csv",))
    folder.replay("scores_*.expected.txt", _printed, needs=("scores.csv",))


def _parser(tally: Tally, path: Path) -> None:
    recorded = read_json(path)

    def compare(name: str, case: dict[str, Any]) -> None:
        expected = {key: case[key] if key == "parsed" else case.get(key) for key in ("parsed", "min_score")}
        name = f"{name}, {case['reply']!r}"
        if case.get("exception"):
            tally.case(name, True, lambda: _exception_of(case["reply"]) in str(case["exception"]))
        else:
            tally.case(name, expected, partial(_parsed, case["reply"]), MEANS)

    tally.each(numbered(recorded["cases"] if isinstance(recorded, dict) else recorded), compare)


def _exception_of(reply: Any) -> str:
    try:
        return f"no exception but {parse_official(reply)!r}"
    except Exception as error:
        return type(error).__name__


def _parsed(reply: str) -> dict[str, Any]:
    """Return the original's parsed reply and its smallest score, if there is one."""
    parsed = parse_official(reply)
    smallest = None
    if isinstance(parsed, dict | list):
        try:
            smallest = min(parsed["score"])
        except Exception as error:
            smallest = f"ERR:{type(error).__name__}"
    return {"parsed": parsed, "min_score": smallest}


def _single(tally: Tally, path: Path) -> None:
    def compare(name: str, case: dict[str, Any]) -> None:
        expected = f"ERR:{case['exception']}" if case.get("exception") else [case[key] for key in MEASURES]
        tally.case(name, expected, lambda: list(item_score(case["SC"], case["PQ"])), MEANS)

    tally.each(numbered(read_json(path)), compare)


def _edits(path: Path) -> list[JudgedEdit]:
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        raise Unusable(f"{path.name} has no rows")
    return [
        JudgedEdit(
            row["task_type"],
            row["instruction_language"],
            _number(row["sementics_score"]),  # spelt so in the original
            _number(row["quality_score"]),
            row["intersection_exist"].strip().lower() == "true",
        )
        for row in rows
    ]


def _number(text: str) -> float:
    """Return NaN for an empty cell: the original has no failed edits, and means of NaN are NaN."""
    return float(text) if text.strip() else math.nan


def _means(edits: list[JudgedEdit], language: str, intersection: bool, groups: list[str]) -> Means | None:
    """Return the means, or ``None`` if a group is empty (NaN in the original)."""
    try:
        means = summarise([edit for edit in edits if edit.group in groups], language, intersection)
    except ValueError:
        return None
    return means if means.overall.keys() == set(groups) else None


def _statistics(tally: Tally, path: Path) -> None:
    recorded, edits = read_json(path), _edits(path.parent / "scores.csv")
    for language, tables in recorded["expected"].items():
        for table, expected in tables.items():
            measure, _, subset = table.partition("_")
            groups = [name for name in expected if not name.startswith("avg_")]
            means = _means(edits, language, subset == "intersection", groups)
            for name, value in expected.items():
                ours = partial(_measure_of, edits, language, subset == "intersection", measure, name, means)
                tally.case(f"{language}, {table}, {name}", value, ours, MEANS)


def _measure_of(
    edits: list[JudgedEdit], language: str, intersection: bool, measure: str, name: str, means: Means | None
) -> float:
    if name.startswith("avg_"):
        return math.nan if means is None else means.macro[MEASURES.index(measure)]
    if means is None:
        means = _means(edits, language, intersection, [name])
    return math.nan if means is None else getattr(means, measure)[name]


def _printed(tally: Tally, path: Path) -> None:
    """Compare the printed table: lines "group: semantics, quality, overall" of all edits, then of the intersection."""
    language = re.fullmatch(r"scores_(\w+)\.expected\.txt", path.name)[1]
    edits, intersection = _edits(path.parent / "scores.csv"), False
    pattern = r"^(?:(?P<head>Intersection:)|(?P<name>[^:\n]+): (?P<values>(?:(?:[-\d.]+|nan)(?:, |$)){3}))\s*$"
    lines = [match for line in path.read_text().splitlines() if (match := re.match(pattern, line.rstrip()))]
    names = [match["name"] for match in lines if match["name"] and not match["name"].startswith("Average")]
    groups = list(dict.fromkeys(names))
    for match in lines:
        if match["head"]:
            intersection = True
            continue
        expected = [float(value) for value in match["values"].split(", ")]
        tally.case(match[0], expected, partial(_row, edits, language, intersection, match["name"], groups), LAST_DIGIT)
    if not lines:
        raise Unusable("it has no line of the form 'group: semantics, quality, overall'")


def _row(edits: list[JudgedEdit], language: str, intersection: bool, name: str, groups: list[str]) -> list[float]:
    means = _means(edits, language, intersection, groups if name.startswith("Average") else [name])
    if means is None:
        return [math.nan] * 3
    return list(means.macro) if name.startswith("Average") else [getattr(means, which)[name] for which in MEASURES]
