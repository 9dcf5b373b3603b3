"""DPG-Bench's scoring rules, pure functions from answers to yes/no questions to scores.

After Hu et al., "ELLA" (arXiv 2403.05135; TencentQQGYLab/ELLA@3c228f1 ``compute_dpg_bench.py``, Apache-2.0), written
independently from the rules and proven on the original's answers (``tests/golden/dpg``).

There is a question per fact of the prompt; a question counts only if the questions that it depends on were answered
yes. This cascades: a question set to 0 takes its children with it.
"""

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Compatibility:
    """Quirks of the original that change its numbers; all off is the correct reading."""

    first_row_bug: bool = False
    """The original skips the first row of the questions (ELLA#61): one item loses its first question, and fails
    as a whole if another of its questions depends on it."""
    categories_of_last_image: bool = False
    """The original's category scores use only each item's last image, and the answers before the dependency rule
    (ELLA#60)."""


CORRECT = Compatibility()
OFFICIAL = Compatibility(first_row_bug=True, categories_of_last_image=True)


@dataclass(frozen=True)
class DpgQuestion:
    """One question about an image."""

    number: int
    text: str
    category: str
    """Second level (L2), such as "attribute - color"; the part before the dash is the first level (L1)."""
    parents: tuple[int, ...]
    """Numbers of the questions that must be answered yes for this one to count."""


@dataclass(frozen=True)
class ItemAnswers:
    """Answers about one prompt's images; per image: question number -> 1, 0, or ``None`` (no usable answer)."""

    item: str
    images: tuple[Mapping[int, float | None], ...]


@dataclass(frozen=True)
class DpgSummary:
    """Scores over many prompts, as fractions."""

    overall: float
    """Mean over the scored items; times 100 this is the published "DPG-Bench" score."""
    items: Mapping[str, float]
    images: Mapping[str, tuple[float, ...]]
    broad_categories: Mapping[str, float]
    categories: Mapping[str, float]
    failed: Mapping[str, str]
    """Item -> reason why it could not be scored. Failed items are in no mean."""


def read_questions(path: Path, compatibility: Compatibility = CORRECT) -> dict[str, list[DpgQuestion]]:
    """Read the questions of ``dpg_bench.csv``: item -> questions in order.

    Raises:
        FileNotFoundError: The file is missing.
        ValueError: A column is missing, a number is malformed, or a question depends on one that does not exist.
    """
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    items: dict[str, list[DpgQuestion]] = {}
    for line, row in enumerate(rows[compatibility.first_row_bug :], start=2 + compatibility.first_row_bug):
        try:
            parents = tuple(number for text in row["dependency"].split(",") if (number := int(text)))
            category = row["tuple"].split("(")[0].strip()
            question = DpgQuestion(int(row["proposition_id"]), row["question_natural_language"], category, parents)
            items.setdefault(row["item_id"], []).append(question)
        except (KeyError, ValueError, AttributeError, TypeError) as error:
            raise ValueError(f"{path}, row {line}, is not a question of DPG-Bench's form ({error!r})") from None
    if not compatibility.first_row_bug:
        for item, questions in items.items():
            _check(path, item, questions)
    return items


def _check(path: Path, item: str, questions: Sequence[DpgQuestion]) -> None:
    numbers = [question.number for question in questions]
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"{path} asks a question of {item} twice: {numbers}")
    if absent := {parent for question in questions for parent in question.parents} - set(numbers):
        raise ValueError(f"{path}: questions of {item} depend on {sorted(absent)}, which do not exist")


def quadrants(size: tuple[int, int]) -> list[Box]:
    """Return the boxes of the images in a 2x2 grid: top left, top right, bottom left, bottom right.

    Args:
        size: Width and height of the grid.

    Raises:
        ValueError: The width or height is odd.
    """
    width, height = size
    if width % 2 or height % 2:
        raise ValueError(f"a grid of {width}x{height} cannot hold 2x2 equal images")
    w, h = width // 2, height // 2
    return [(x, y, x + w, y + h) for y in (0, h) for x in (0, w)]


def read_reply(reply: str | None) -> float | None:
    """Parse a chat model's reply as 1 (yes) or 0 (no), ignoring case and punctuation; ``None`` for anything else."""
    match = re.fullmatch(r"\W*(yes|no)\b\W*", (reply or "").lower())
    return None if match is None else float(match[1] == "yes")


def apply_dependencies(scores: Mapping[int, float], parents: Mapping[int, Sequence[int]]) -> dict[int, float]:
    """Set questions to 0 that depend on a question answered no or set to 0 before.

    Args:
        scores: Question number -> 1 or 0.
        parents: Question number -> the questions that it depends on, in order of the questions; 0 means none.

    Raises:
        KeyError: A question depends on one without a score (and on none before it that was answered no).
    """
    results = dict(scores)
    for number, required in parents.items():
        if any(parent and results[parent] == 0 for parent in required):
            results[number] = 0.0
    return results


def summarise(
    questions: Mapping[str, Sequence[DpgQuestion]],
    answers: Iterable[ItemAnswers],
    compatibility: Compatibility = CORRECT,
) -> DpgSummary:
    """Score many prompts by DPG-Bench's rule.

    An item with a missing answer about any of its images fails as a whole: it is counted and in no mean. The questions
    must be read with the same ``compatibility``.

    Raises:
        ValueError: No item could be scored.
    """
    images: dict[str, tuple[float, ...]] = {}
    failed: dict[str, str] = {}
    by_category: dict[str, list[float]] = {}
    for entry in answers:
        item_questions = questions.get(entry.item, ())
        scored = _score_item(item_questions, entry.images)
        if isinstance(scored, str):
            failed[entry.item] = scored
            continue
        images[entry.item] = tuple(sum(results.values()) / len(results) for _, results in scored)
        counted = [scored[-1][0]] if compatibility.categories_of_last_image else [results for _, results in scored]
        for results in counted:
            for question in item_questions:
                by_category.setdefault(question.category, []).append(results[question.number])
    if not images:
        raise ValueError(f"none of {len(failed)} items could be scored: {dict(list(failed.items())[:3])}")
    items = {item: sum(values) / len(values) for item, values in images.items()}
    broad: dict[str, list[float]] = {}
    for category, values in by_category.items():
        broad.setdefault(category.split("-")[0].strip(), []).extend(values)
    return DpgSummary(
        overall=sum(items.values()) / len(items),
        items=items,
        images=images,
        broad_categories={name: sum(values) / len(values) for name, values in sorted(broad.items())},
        categories={name: sum(values) / len(values) for name, values in sorted(by_category.items())},
        failed=failed,
    )


def _score_item(
    questions: Sequence[DpgQuestion], images: Sequence[Mapping[int, float | None]]
) -> list[tuple[dict[int, float], dict[int, float]]] | str:
    """Return per image the scores before and after the dependency rule, or the reason why the item fails."""
    if not questions or not images:
        return "there is no question" if not questions else "there is no image"
    parents = {question.number: question.parents for question in questions}
    scored = []
    for number, answers in enumerate(images):
        answered = {n: score for n in parents if (score := answers.get(n)) is not None}
        if len(answered) < len(parents):
            return f"image {number} has no usable answer to {sorted(parents.keys() - answered.keys())}"
        try:
            scored.append((answered, apply_dependencies(answered, parents)))
        except KeyError as parent:
            return f"a question depends on question {parent}, which is not asked"
    return scored
