"""DPG-Bench: a table of answers, and all numbers that the original prints for it."""

import math
import re
from functools import partial
from pathlib import Path
from typing import Any

from reca.evaluation.benchmarks.dpgbench.rules import (
    Compatibility,
    DpgSummary,
    ItemAnswers,
    read_questions,
    summarise,
)
from tests.golden.replays.comparison import MEANS, Folder, Tally, Unusable, read_json

FIRST_ROW_BUG, RECA = "with_first_row_bug", "reca"
"""Parts of the names of such runs."""
NO_RUNS = {"resolution", "pic_num", "answers", "notes", "note", "source"}


def replay(folder: Folder) -> None:
    folder.supports("questions.csv")
    folder.replay("cases*.json", _cases, needs=("questions.csv",))
    folder.replay("published*.json", _published)


def _cases(tally: Tally, path: Path) -> None:
    recorded = read_json(path)
    answers = recorded["answers"]
    runs = {name: run for name, run in recorded.items() if isinstance(run, dict) and name not in NO_RUNS}
    if not runs:
        raise Unusable("it has answers and no scores")

    def compare(name: str, run: dict[str, Any]) -> None:
        if "per_image" not in run:
            tally.notes.append(f"{name}, which has no per_image")
            return
        compatibility = Compatibility(first_row_bug=FIRST_ROW_BUG in name, categories_of_last_image=True)
        questions = read_questions(path.parent / "questions.csv", compatibility)
        files = [*run["per_image"], *map(_failed_file, run.get("failed", []))]
        images = _images(name, recorded, run)
        # A file without recorded answers fails, and so does the case.
        entries = [_entry(file, answers, images) for file in files]
        file_questions = {file: questions.get(_item_of(file, images), []) for file in files}
        try:
            ours = summarise(file_questions, entries, compatibility)
        except ValueError:  # no item could be scored: the original's mean is NaN then
            tally.case(f"{name}, per_image", run["per_image"], dict)
            tally.case(f"{name}, score", run.get("score", math.nan), lambda: math.nan)
            return
        _compare(tally, name, run, ours)

    tally.each(runs.items(), compare)


def _images(name: str, recorded: dict[str, Any], run: dict[str, Any]) -> int | None:
    """Return the number of quadrants that a run scored; ``None`` in RecA's layout, where every file is one image."""
    if name.startswith(RECA):
        return None
    if match := re.search(r"pic_num_(\d+)", name):
        return int(match[1])
    return int(recorded.get("pic_num") or len(next(iter(run["per_image"].values()))["scores"]))


def _failed_file(line: str) -> str:
    return re.search(r"(\S+\.\w+)", line)[1]


def _item_of(file: str, images: int | None) -> str:
    """Return the item of a file: ``<item>.png`` for a grid, ``<item>_<number>.png`` in RecA's layout."""
    return file.split("_" if images is None else ".")[0]


def read_exactly(reply: str) -> float:
    """Read a VQA model's answer as the original does: 1 for exactly "yes", 0 for everything else."""
    return float(reply == "yes")


def _entry(file: str, answers: dict[str, Any], images: int | None) -> ItemAnswers:
    replies = answers.get(_item_of(file, images), [])
    if images is None:  # the number in the name is the image; the original reads each file four times
        number = int(file.split("_")[1].split(".")[0])
        replies = replies[number : number + 1] * 4
    else:
        replies = [*replies[:images], *[{}] * (images - len(replies))]
    scores = [{int(number): read_exactly(reply) for number, reply in image.items()} for image in replies]
    return ItemAnswers(file, tuple(scores))


def _compare(tally: Tally, name: str, run: dict[str, Any], ours: DpgSummary) -> None:
    for file, expected in run["per_image"].items():
        tally.case(f"{name}, {file}", expected["scores"], partial(lambda f: list(ours.images[f]), file), MEANS)
        tally.case(f"{name}, {file}, average", expected["average"], partial(ours.items.__getitem__, file), MEANS)
    for level, rates in (("l1", ours.broad_categories), ("l2", ours.categories)):
        if level in run:
            tally.case(f"{name}, {level}", run[level], lambda r=rates: {k: 100 * v for k, v in r.items()}, 100 * MEANS)
    if "score" in run:
        tally.case(f"{name}, score", run["score"], lambda: 100 * ours.overall, 100 * MEANS)
    if "failed" in run:
        tally.case(f"{name}, failed", sorted(map(_failed_file, run["failed"])), lambda: sorted(ours.failed))


def _published(tally: Tally, path: Path) -> None:
    """Every published category rate is k/n with n a multiple of the recorded smallest denominator."""
    recorded = read_json(path)

    def compare(run: str, denominators: dict[str, int]) -> None:
        for category, denominator in denominators.items():
            rate = recorded[run]["L1"][category] / 100
            tally.case(f"{run}, {category}", True, lambda r=rate, n=denominator: abs(r * n - round(r * n)) < 1e-6)

    tally.each(recorded.get("smallest_denominators", {}).items(), compare)
    tally.notes.append("the published scores themselves, of which no answers are public")
