"""GenEval's own form of results: its ``results.jsonl`` read, its summary written.

After djghosh13/geneval@af4902f ``summary_scores.py`` (MIT), proven on what it prints
(``tests/golden/geneval/summary``).
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from reca.evaluation.benchmarks.geneval.prompts import PROMPTS
from reca.evaluation.geneval_rules import GenevalSummary, summarise


def read_results(path: Path) -> list[dict[str, Any]]:
    """Read ``results.jsonl``: one judged image a line.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A line is no result.
    """
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            missing = {"tag", "metadata", "correct"} - row.keys()
        except (ValueError, AttributeError) as error:
            raise ValueError(f"{path}, line {number}, is no GenEval result ({error})") from None
        if missing:
            raise ValueError(f"{path}, line {number}, lacks {', '.join(sorted(missing))}")
        rows.append(row)
    return rows


def summarise_results(rows: Iterable[Mapping[str, Any]]) -> GenevalSummary:
    """Scores of judged images; a prompt is told by its metadata.

    Raises:
        ValueError: There are no rows.
    """
    return summarise((row["tag"], row["metadata"], bool(row["correct"])) for row in rows)


def summary_text(rows: list[dict[str, Any]]) -> str:
    """What the original prints for these results.

    Raises:
        ValueError: There are no rows.
    """
    summary = summarise_results(rows)
    tasks = [f"{tag:<16} = {good / n:.2%} ({good} / {n})" for tag, (good, n) in summary.tasks.items()]
    lines = [
        "Summary",
        "=======",
        f"Total images: {len(rows)}",
        f"Total prompts: {len({row['metadata'] for row in rows})}",
        f"% correct images: {summary.images:.2%}",
        f"% correct prompts: {summary.prompts:.2%}",
        "",
        "Task breakdown",
        "==============",
        *tasks,
        "",
        f"Overall score (avg. over tasks): {summary.overall:.5f}",
    ]
    return "\n".join(lines) + "\n"


def missing_prompts(rows: Iterable[Mapping[str, Any]]) -> int:
    """How many of the 553 prompts have no image: the original leaves them out of its means without a word."""
    return PROMPTS - len({row["metadata"] for row in rows})
