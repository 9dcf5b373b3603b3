"""MME's scoring rules, pure functions: yes/no questions in pairs about an image.

After Fu et al., "MME" (arXiv 2306.13394), in the form of the script that InternVL, BAGEL and RecA share, and of
lmms-eval@75571cf (MIT), written independently from the rules and proven on their answers
(``tests/golden/understanding``).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

PERCEPTION = {
    "existence": 60, "count": 60, "position": 60, "color": 60, "posters": 294, "celebrity": 340, "scene": 400,
    "landmark": 400, "artwork": 400, "OCR": 40,
}  # fmt: skip
COGNITION = {"commonsense_reasoning": 140, "numerical_calculation": 40, "text_translation": 40, "code_reasoning": 40}
QUESTIONS = PERCEPTION | COGNITION
"""Number of questions by subtask, 2,374 in all: two about each of 1,187 images."""

Rule = Literal["official", "lmms-eval"]
Answer = Literal["yes", "no", "other"]


@dataclass(frozen=True)
class MmeAnswer:
    """One answered question."""

    subtask: str
    image: str
    """Identifier of the image; the two questions of an image make a pair."""
    answer: str
    """Yes or No."""
    reply: str


@dataclass(frozen=True)
class MmeSummary:
    """MME's points."""

    subtasks: dict[str, float]
    """0..200 each: accuracy over questions plus accuracy over images with both answers right, in per cent."""
    perception: float
    """Sum over the ten perception subtasks, at most 2000."""
    cognition: float
    """Sum over the four cognition subtasks, at most 800."""


def parse(reply: str, rule: Rule = "official") -> Answer:
    """Parse a reply as yes or no from its first four characters in lower case, or as "other", which is wrong.

    lmms-eval first strips the reply and removes its dots, and accepts a single "y" or "n".
    """
    text = reply.lower()
    if rule == "lmms-eval":
        text = text.strip().replace(".", "")
        if len(text) == 1:
            return "yes" if text == "y" else "no" if text == "n" else "other"
    beginning = text[:4]
    return "yes" if "yes" in beginning else "no" if "no" in beginning else "other"


def summarise(rows: Iterable[MmeAnswer], rule: Rule = "official") -> MmeSummary:
    """Return MME's points of answered questions.

    Raises:
        ValueError: An image does not have two questions, a subtask is unknown, or there is no answer.
    """
    subtasks: dict[str, dict[str, list[bool]]] = {}
    for row in rows:
        reply, truth = parse(row.reply, rule), row.answer.strip().rstrip(".").lower()
        if truth not in ("yes", "no") or row.subtask not in QUESTIONS:
            raise ValueError(f"MME has no subtask {row.subtask!r} with the answer {row.answer!r}")
        subtasks.setdefault(row.subtask, {}).setdefault(row.image, []).append(reply == truth)
    if not subtasks:
        raise ValueError("there are no answers to score")
    points = {name: _points(name, images) for name, images in subtasks.items()}
    perception, cognition = (sum(points.get(name, 0.0) for name in group) for group in (PERCEPTION, COGNITION))
    return MmeSummary(points, perception, cognition)


def _points(subtask: str, images: dict[str, list[bool]]) -> float:
    for image, right in images.items():
        if len(right) != 2:
            raise ValueError(f"MME asks two questions about an image; {subtask} has {len(right)} about {image!r}")
    flat = [answer for right in images.values() for answer in right]
    return 100 * sum(flat) / len(flat) + 100 * sum(map(all, images.values())) / len(images)
