"""WISE: replies of both versions, score files of all prompts, the published table.

RecA's copy of the script, which only these cases replay, is reimplemented here.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

from reca.evaluation.benchmarks.wise.rules import (
    CATEGORIES,
    LEGACY,
    VERIFIED,
    VERSIONS,
    WiseSummary,
    parse_legacy,
    parse_verified,
    summarise,
)
from tests.golden.replays.comparison import MEANS, PUBLISHED, Folder, Tally, numbered, read_json, read_lines

TWO_DIGITS = 5.001e-3
MISSING_IN_RECA = 9.9
"""Written by RecA's copy for a score that it could not read."""


def replay(folder: Folder) -> None:
    folder.replay("reply_parser*.json", _parser)
    folder.supports("*_scores.jsonl*")
    folder.replay("expected*.json", _expected)


def _parser(tally: Tally, path: Path) -> None:
    for version, cases in read_json(path).items():
        if not isinstance(cases, list):
            continue
        readers: dict[str, Any] = {
            "legacy": partial(parse_legacy, rule="official"),
            "reca": reca_parse,
            "verified": partial(parse_verified, rule="official"),
        }
        reader = next((readers[name] for name in readers if version.startswith(name)), None)
        if reader is None:
            tally.notes.append(f"{version}, an unknown version of WISE")
            continue

        def compare(name: str, case: dict[str, Any], version: str = version, reader: Any = reader) -> None:
            name = f"{version}, {name}, {case['reply']!r}"
            tally.case(name, case["parsed"], partial(reader, case["reply"]), MEANS)

        tally.each(numbered(cases), compare)


def _expected(tally: Tally, path: Path) -> None:
    recorded = read_json(path)
    for name, version in VERSIONS.items():
        if name not in recorded:
            continue
        files = sorted(path.parent.glob(f"{name}_scores.jsonl*"))
        if not files:
            tally.notes.append(f"{name}: this folder lacks {name}_scores.jsonl.gz")
            continue
        expected, rows = recorded[name], read_lines(files[0])
        if "category" not in expected and "overall" not in expected:
            tally.case(f"{name}, refused", True, lambda r=rows, v=version: _refuses(r, v))
            continue
        ours = cache(partial(summarise, rows, version))
        values = {
            "category": lambda o=ours: dict(o().categories),
            "n": lambda o=ours: dict(o().counts),
            "overall": lambda o=ours: o().overall,
        }
        for key, value in values.items():
            if key in expected:
                tally.case(f"{name}, {key}", expected[key], value, MEANS)
        _printed(tally, name, expected.get("official_stdout_tail"), ours)
        if "reca_unweighted" in expected:
            _reca(tally, expected["reca_unweighted"], rows)
    if "published_verified_leaderboard" in recorded:
        _leaderboard(tally, recorded["published_verified_leaderboard"])


def _refuses(rows: list[dict[str, Any]], version: Any) -> bool:
    try:
        summarise(rows, version)
    except ValueError:
        return True
    return False


def _printed(tally: Tally, name: str, tail: list[str] | None, ours: Callable[[], WiseSummary]) -> None:
    def shown() -> list[str]:
        return [f"{score:.2f}" for score in (*ours().categories.values(), ours().overall)]

    if tail:
        tally.case(f"{name}, printed row", re.findall(r"\d+\.\d\d", tail[-1]), shown)
        if overall := re.search(r"Overall WiScore: ([\d.]+)", tail[0]):
            tally.case(f"{name}, printed overall", overall[1], lambda: shown()[-1])


def reca_parse(reply: str) -> dict[str, float]:
    """Parse a reply as RecA's copy does: it also accepts full-width colons, and fills in 9.9."""
    pattern = r"(Consistency|Realism|Aesthetic Quality)\*{0,2}\s*[:\uff1a]?\s*(\d)"
    digits = {name.lower().replace(" ", "_"): float(d) for name, d in re.findall(pattern, reply, re.IGNORECASE)}
    return {name: digits.get(name, MISSING_IN_RECA) for name in LEGACY.components}


def reca_scores(rows: Iterable[Mapping[str, Any]]) -> dict[str, float] | None:
    """Return RecA's (and early BAGEL's) legacy scores: the six categories and their plain mean, "Overall".

    Time and space are distinguished by the ``Subcategory``, not by the id. A score of 9.9 (unreadable) voids the
    culture or the space-time file, though not the science file, whose mean it spoils.

    Returns:
        Scores in the order in which that script prints them, or ``None`` if it prints none.
    """
    totals: dict[str, list[float]] = {"Cultural": []}
    void = False
    for row in sorted(rows, key=lambda row: _file_of(row["prompt_id"])):  # one file after another, rows in their order
        prompt_id, values = row["prompt_id"], [row[name] for name in LEGACY.components]
        category = LEGACY.category_of(prompt_id).capitalize()
        if category in ("Time", "Space"):
            category = "Time" if row["Subcategory"] in ("Longitudinal time", "Horizontal time") else "Space"
        void |= prompt_id <= 700 and MISSING_IN_RECA in values
        totals.setdefault("Cultural" if category == "Culture" else category, []).append(LEGACY.score(row))
    counts = {name: len(values) for name, values in totals.items()}
    science = sum(counts.get(name, 0) for name in ("Biology", "Physics", "Chemistry"))
    if void or counts["Cultural"] < 400 or counts.get("Time", 0) + counts.get("Space", 0) < 300 or science < 300:
        return None
    means = {name: sum(values) / len(values) for name, values in totals.items()}
    return {**means, "Overall": sum(means.values()) / len(means)}


def _file_of(prompt_id: int) -> int:
    return 0 if prompt_id <= 400 else 1 if prompt_id <= 700 else 2


def _reca(tally: Tally, expected: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    def ours() -> dict[str, float]:
        return reca_scores(rows) or {}

    tally.case("reca, keys", expected["keys"], lambda: list(ours()))
    tally.case("reca, values", expected["values"], lambda: [f"{value:.2f}" for value in ours().values()])


def _leaderboard(tally: Tally, lines: list[str]) -> None:
    """Compare each overall with its categories, to the digits of the row (one published row has two)."""
    for line in lines:
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        scores = [float(cell) for cell in cells if re.fullmatch(r"\d?\.\d+", cell)]
        if len(scores) != 1 + len(CATEGORIES):
            tally.notes.append(f"a line without an overall and {len(CATEGORIES)} scores: {line[:60]!r}")
            continue
        overall, *categories = scores
        tolerance = TWO_DIGITS if all(round(score, 2) == score for score in categories) else 1.1 * PUBLISHED
        weighted = sum(weight * score for weight, score in zip(VERIFIED.weights, categories, strict=True))
        tally.case(line, overall, lambda w=weighted: w, tolerance)
