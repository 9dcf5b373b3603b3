"""VIEScore: recorded scores of real judges, and of people."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from scipy.stats import spearmanr

from reca.evaluation.benchmarks.gedit.rules import item_score
from tests.golden.replays.comparison import CORRELATIONS, PUBLISHED, Folder, Tally, read_json

JUDGEMENTS = "text_guided_ie_judgements*.json*"


def replay(folder: Folder) -> None:
    folder.supports(JUDGEMENTS)
    folder.replay("expected*.json", partial(_expected, folder))


def _expected(folder: Folder, tally: Tally, path: Path) -> None:
    recorded = read_json(path)
    files = sorted(folder.path.glob(JUDGEMENTS))
    if not files:
        tally.notes.append("it needs text_guided_ie_judgements.json.gz, which this folder lacks")
        return
    judgements: dict[str, Any] = {}
    for file in files:
        judgements |= read_json(file)
    for judge, editors in recorded.get("recomputed", {}).items():

        def compare(editor: str, expected: dict[str, Any], judge: str = judge) -> None:
            if rows := _rows(tally, judgements, judge, editor):
                _compare(tally, f"{judge}, {editor}", expected, rows)

        tally.each(editors.items(), compare)
    for name, tables in recorded.items():
        if name.startswith("published_"):
            judge = name.removeprefix("published_")
            for editor, expected in tables.get("mean", {}).items():
                sizes = {judge: recorded.get("recomputed", {}).get(judge, {}).get(editor, {}).get("n")}
                rows = _rows(tally, judgements, judge, editor)
                if rows and sizes[judge] in (None, len(rows)):
                    both = {"mean": expected, "spearman_with_human": tables.get("spearman", {}).get(editor)}
                    _compare(tally, f"published, {judge}, {editor}", both, rows)


def _rows(tally: Tally, judgements: dict[str, Any], judge: str, editor: str) -> list[dict[str, Any]]:
    rows = list(judgements.get(judge, {}).get(editor, {}).values())
    if not rows and (note := f"{judge}, {editor}: no judgements in this folder") not in tally.notes:
        tally.notes.append(note)
    return rows


def _compare(tally: Tally, name: str, expected: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    judge = list(zip(*(item_score(row["SC"], row["PQ"]) for row in rows), strict=True))
    people = list(zip(*(_human(row["human"]) for row in rows), strict=True))
    if "n" in expected:
        tally.case(f"{name}, n", expected["n"], lambda: len(rows))
    tally.case(f"{name}, means", expected["mean"], lambda: [sum(s) / len(s) / 10 for s in judge], PUBLISHED)
    if expected.get("spearman_with_human"):
        ours: Callable[[], list[float]] = partial(_correlations, judge, people)
        tally.case(f"{name}, spearman", expected["spearman_with_human"], ours, CORRELATIONS)


def _human(raters: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """Return means over the raters of both scores and of the root of their product."""
    overall = [math.sqrt(semantics * quality) for semantics, quality in raters]
    columns = [[rater[0] for rater in raters], [rater[1] for rater in raters], overall]
    semantics, quality, both = (sum(column) / len(column) for column in columns)
    return semantics, quality, both


def _correlations(judge: Sequence[Sequence[float]], people: Sequence[Sequence[float]]) -> list[float]:
    return [float(spearmanr(*pair).statistic) for pair in zip(judge, people, strict=True)]
