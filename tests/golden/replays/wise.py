"""WISE: replies of both versions, score files of all prompts, the published table."""

import re
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

from reca.evaluation.benchmarks.wise.rules import (
    CATEGORIES,
    VERIFIED,
    VERSIONS,
    Summary,
    parse_legacy,
    parse_verified,
    reca_scores,
    summarise,
)
from tests.golden.replays.comparison import MEANS, PUBLISHED, Folder, Tally, numbered, read_json, read_lines

TWO_DIGITS = 5.001e-3


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
            "reca": partial(parse_legacy, rule="reca"),
            "verified": partial(parse_verified, rule="official"),
        }
        reader = next((readers[name] for name in readers if version.startswith(name)), None)
        if reader is None:
            tally.notes.append(f"{version}, which is no version of WISE that we know")
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


def _printed(tally: Tally, name: str, tail: list[str] | None, ours: Callable[[], Summary]) -> None:
    def shown() -> list[str]:
        return [f"{score:.2f}" for score in (*ours().categories.values(), ours().overall)]

    if tail:
        tally.case(f"{name}, printed row", re.findall(r"\d+\.\d\d", tail[-1]), shown)
        if overall := re.search(r"Overall WiScore: ([\d.]+)", tail[0]):
            tally.case(f"{name}, printed overall", overall[1], lambda: shown()[-1])


def _reca(tally: Tally, expected: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    def ours() -> dict[str, float]:
        return reca_scores(rows) or {}

    tally.case("reca, keys", expected["keys"], lambda: list(ours()))
    tally.case("reca, values", expected["values"], lambda: [f"{value:.2f}" for value in ours().values()])


def _leaderboard(tally: Tally, lines: list[str]) -> None:
    """Overall follows from the categories, to the digits that each row gives (one published row has two)."""
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
