"""GenEval's own form of results: reads ``results.jsonl`` and prints the original's summary.

After djghosh13/geneval@af4902f ``summary_scores.py`` (MIT), proven on its output
(``tests/golden/geneval/summary``).
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from reca.evaluation.geneval_rules import GenevalSummary, summarise


def read_results(path: Path) -> list[dict[str, Any]]:
    """Read ``results.jsonl`` with one judged image a line.

    Raises:
        FileNotFoundError: The file is missing.
        ValueError: A line is not a result.
    """
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            absent = {"tag", "metadata", "correct"} - row.keys()
        except (ValueError, AttributeError) as error:
            raise ValueError(f"{path}, line {number}, is not a GenEval result ({error})") from None
        if absent:
            raise ValueError(f"{path}, line {number}, lacks {', '.join(sorted(absent))}")
        rows.append(row)
    return rows


def summarise_results(rows: Iterable[Mapping[str, Any]]) -> GenevalSummary:
    """Summarise judged images; the metadata identifies a prompt.

    Raises:
        ValueError: There are no rows.
    """
    return summarise((row["tag"], row["metadata"], bool(row["correct"])) for row in rows)


def summary_text(rows: list[dict[str, Any]]) -> str:
    """Return the original's printed summary of these results.

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
