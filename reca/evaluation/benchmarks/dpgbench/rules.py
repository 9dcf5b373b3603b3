"""DPG-Bench's and DSG's scoring rules, pure: from answers to yes/no questions to scores.

After Hu et al., "ELLA" (arXiv 2403.05135; TencentQQGYLab/ELLA@3c228f1 ``compute_dpg_bench.py``, Apache-2.0) and Cho
et al., "Davidsonian Scene Graph" (arXiv 2310.18235; j-min/DSG@7330119, Apache-2.0), written anew from the rules and
proven on what the originals answer (``tests/golden/dpg``, ``tests/golden/dsg``).

Both ask a question per fact of the prompt; a question counts only if the questions that it depends on were answered
yes. DPG-Bench lets that cascade (a question taken away takes its children with it), DSG looks at the answers as given.
"""

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

PROMPTS = 1065
IMAGES_PER_PROMPT = 4
LABEL = "dpg"

Dependencies = Literal["cascade", "raw", "none"]
"""DPG-Bench's rule, DSG's rule, and no rule."""
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Compatibility:
    """Quirks of the original that change its numbers; all off is the correct reading."""

    first_row_bug: bool = False
    """The original skips the first row of the questions (ELLA#61): one item loses its first question, and fails
    altogether where another of its questions depends on that one."""
    categories_of_last_image: bool = False
    """The original's category scores rest on each item's last image only and on the answers before the dependency
    rule (ELLA#60)."""


CORRECT = Compatibility()
OFFICIAL = Compatibility(first_row_bug=True, categories_of_last_image=True)


@dataclass(frozen=True)
class Question:
    """One question about an image."""

    number: int
    text: str
    category: str
    """Second level, for instance "attribute - color"."""
    parents: tuple[int, ...]
    """Numbers of the questions that must be answered yes for this one to count."""

    @property
    def broad_category(self) -> str:
        """First level: entity, attribute, relation, global or other."""
        return self.category.split("-")[0].strip()


@dataclass(frozen=True)
class ItemAnswers:
    """The answers about one prompt's images: per image, question number -> 1, 0, or ``None`` (no usable answer)."""

    item: str
    """Whose questions were asked."""
    images: tuple[Mapping[int, float | None], ...]
    name: str = ""
    """What to call it in the results, where that is not the item: a file's name."""


@dataclass(frozen=True)
class Summary:
    """Scores over many prompts, as fractions."""

    overall: float
    """Mean over the scored entries: the number that is called "DPG-Bench" when times 100."""
    items: Mapping[str, float]
    images: Mapping[str, tuple[float, ...]]
    broad_categories: Mapping[str, float]
    categories: Mapping[str, float]
    failed: Mapping[str, str]
    """Items that could not be scored, and why. They are in no mean."""


def read_questions(path: Path, compatibility: Compatibility = CORRECT) -> dict[str, list[Question]]:
    """Read ``dpg_bench.csv``, or DSG's annotations, which have the same columns: item -> questions in order.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A column is missing, a number is none, or a question depends on one that does not exist.
    """
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    items: dict[str, list[Question]] = {}
    for line, row in enumerate(rows[compatibility.first_row_bug :], start=2 + compatibility.first_row_bug):
        try:
            parents = tuple(number for text in row["dependency"].split(",") if (number := int(text)))
            category = row["tuple"].split("(")[0].strip()
            question = Question(int(row["proposition_id"]), row["question_natural_language"], category, parents)
            items.setdefault(row["item_id"], []).append(question)
        except (KeyError, ValueError, AttributeError, TypeError) as error:
            raise ValueError(f"{path}, row {line}, is no question of DPG-Bench's form ({error!r})") from None
    if not compatibility.first_row_bug:
        for item, questions in items.items():
            _check(path, item, questions)
    return items


def _check(path: Path, item: str, questions: Sequence[Question]) -> None:
    numbers = [question.number for question in questions]
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"{path} asks a question of {item} twice: {numbers}")
    if missing := {parent for question in questions for parent in question.parents} - set(numbers):
        raise ValueError(f"{path}: questions of {item} depend on {sorted(missing)}, which it does not have")


def quadrants(size: tuple[int, int], count: int = IMAGES_PER_PROMPT) -> list[Box]:
    """Boxes of the images in a 2x2 grid, in the original's order: top left, top right, bottom left, bottom right.

    Args:
        size: Width and height of the grid.
        count: How many of the four are wanted.

    Raises:
        ValueError: The grid cannot be halved, or more than four images are wanted.
    """
    width, height = size
    if width % 2 or height % 2 or not 1 <= count <= 4:
        raise ValueError(f"a grid of {width}x{height} cannot hold {count} of 2x2 equal images")
    w, h = width // 2, height // 2
    return [(x, y, x + w, y + h) for y in (0, h) for x in (0, w)][:count]


def item_of(file_name: str, one_file_per_sample: bool = False) -> str:
    """The item that an image shows: ``<item>.png`` for a grid, ``<item>_<number>.png`` in RecA's layout."""
    return file_name.split("_" if one_file_per_sample else ".")[0]


def read_exactly(reply: str) -> float:
    """The original's reading of its VQA model's answer: 1 for exactly "yes", 0 for everything else."""
    return float(reply == "yes")


def read_reply(reply: str | None) -> float | None:
    """A chat model's reply as 1 or 0, case and closing punctuation aside; ``None`` if it says neither yes nor no."""
    match = re.fullmatch(r"\W*(yes|no)\b\W*", (reply or "").lower())
    return None if match is None else float(match[1] == "yes")


def apply_dependencies(
    scores: Mapping[int, float], parents: Mapping[int, Sequence[int]], rule: Dependencies = "cascade"
) -> dict[int, float]:
    """Set the questions to 0 that depend on a question answered no.

    Args:
        scores: Question number -> 1 or 0.
        parents: Question number -> the questions that it depends on; 0 means none.
        rule: ``cascade`` works through the questions in order and lets a question that was set to 0 take its children
            with it (DPG-Bench); ``raw`` looks at the answers as they were given (DSG); ``none`` changes nothing.

    Raises:
        KeyError: A question depends on one that has no score (and none before it in the list was answered no).
    """
    kept = dict(scores)
    if rule == "none":
        return kept
    looked_at = kept if rule == "cascade" else scores
    for number, needed in parents.items():
        if any(parent and looked_at[parent] == 0 for parent in needed):
            kept[number] = 0.0
    return kept


def score_image(
    scores: Mapping[int, float], parents: Mapping[int, Sequence[int]], rule: Dependencies = "cascade"
) -> float:
    """Share of an image's questions that hold after the dependency rule.

    Raises:
        ValueError: There is no question.
        KeyError: See :func:`apply_dependencies`.
    """
    if not scores:
        raise ValueError("there is no question to score")
    kept = apply_dependencies(scores, parents, rule)
    return sum(kept.values()) / len(kept)


def summarise(
    questions: Mapping[str, Sequence[Question]], answers: Iterable[ItemAnswers], compatibility: Compatibility = CORRECT
) -> Summary:
    """Score many prompts by DPG-Bench's rule.

    An item with an answer missing on any of its images is failed, as a whole: it is counted and in no mean.

    Args:
        questions: From :func:`read_questions`, with the same ``compatibility``.
        answers: One entry per item, or per file where every file stands for itself (RecA's layout).
        compatibility: Quirks to reproduce.

    Raises:
        ValueError: Not one item could be scored.
    """
    images: dict[str, tuple[float, ...]] = {}
    failed: dict[str, str] = {}
    by_category: dict[str, list[float]] = {}
    for entry in answers:
        name, asked = entry.name or entry.item, questions.get(entry.item, ())
        scored = _score_item(asked, entry.images)
        if isinstance(scored, str):
            failed[name] = scored
            continue
        images[name] = tuple(sum(kept.values()) / len(kept) for _, kept in scored)
        counted = [scored[-1][0]] if compatibility.categories_of_last_image else [kept for _, kept in scored]
        for kept in counted:
            for question in asked:
                by_category.setdefault(question.category, []).append(kept[question.number])
    if not images:
        raise ValueError(f"none of {len(failed)} items could be scored: {dict(list(failed.items())[:3])}")
    items = {item: sum(values) / len(values) for item, values in images.items()}
    broad: dict[str, list[float]] = {}
    for category, values in by_category.items():
        broad.setdefault(category.split("-")[0].strip(), []).extend(values)
    return Summary(
        overall=sum(items.values()) / len(items),
        items=items,
        images=images,
        broad_categories={name: sum(values) / len(values) for name, values in sorted(broad.items())},
        categories={name: sum(values) / len(values) for name, values in sorted(by_category.items())},
        failed=failed,
    )


def _score_item(
    asked: Sequence[Question], images: Sequence[Mapping[int, float | None]]
) -> list[tuple[dict[int, float], dict[int, float]]] | str:
    """Per image the scores before and after the dependency rule; or why the item cannot be scored."""
    if not asked or not images:
        return "there is no question" if not asked else "there is no image"
    parents = {question.number: question.parents for question in asked}
    scored = []
    for number, answers in enumerate(images):
        given = {question.number: answers.get(question.number) for question in asked}
        scores = {question: score for question, score in given.items() if score is not None}
        if len(scores) < len(given):
            return f"image {number} has no usable answer to {sorted(given.keys() - scores.keys())}"
        try:
            scored.append((scores, apply_dependencies(scores, parents)))
        except KeyError as missing:
            return f"a question depends on question {missing}, which is not asked"
    return scored
