"""MME's scoring rules, pure: yes/no questions in pairs about an image.

After Fu et al., "MME" (arXiv 2306.13394), in the form of the script that InternVL, BAGEL and RecA share, and of
lmms-eval@75571cf (MIT), written anew from the rules and proven on what they answer (``tests/golden/understanding``).
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
"""By subtask, 2,374 in all: two about each of 1,187 images."""

Rule = Literal["official", "lmms-eval"]
Answer = Literal["yes", "no", "other"]


@dataclass(frozen=True)
class Row:
    """One answered question."""

    subtask: str
    image: str
    """Tells images apart: the questions of one image make a pair."""
    answer: str
    """Yes or No."""
    reply: str


@dataclass(frozen=True)
class Summary:
    """MME's points."""

    subtasks: dict[str, float]
    """0..200 each: accuracy over questions plus accuracy over images of which both questions are right, in per cent."""
    perception: float
    """Sum over the ten perception subtasks, at most 2000."""
    cognition: float
    """Sum over the four cognition subtasks, at most 800."""
    unparsable: int
    """Replies that are neither yes nor no. They are wrong, not left out, in the original and here."""


def parse(reply: str, rule: Rule = "official") -> Answer:
    """Yes or no, if it stands within the first four characters in lower case; else "other", which is wrong.

    lmms-eval first strips the reply and removes its dots, and takes a lone "y" or "n".
    """
    text = reply.lower()
    if rule == "lmms-eval":
        text = text.strip().replace(".", "")
        if len(text) == 1:
            return "yes" if text == "y" else "no" if text == "n" else "other"
    beginning = text[:4]
    return "yes" if "yes" in beginning else "no" if "no" in beginning else "other"


def summarise(rows: Iterable[Row], rule: Rule = "official") -> Summary:
    """MME's points of answered questions.

    Raises:
        ValueError: An image has another number of questions than two, a subtask is unknown, or there is no row.
    """
    subtasks: dict[str, dict[str, list[bool]]] = {}
    unparsable = 0
    for row in rows:
        said, truth = parse(row.reply, rule), row.answer.strip().rstrip(".").lower()
        if truth not in ("yes", "no") or row.subtask not in QUESTIONS:
            raise ValueError(f"MME has no subtask {row.subtask!r} with the answer {row.answer!r}")
        unparsable += said == "other"
        subtasks.setdefault(row.subtask, {}).setdefault(row.image, []).append(said == truth)
    if not subtasks:
        raise ValueError("there are no answers to score")
    points = {name: _points(name, images) for name, images in subtasks.items()}
    perception, cognition = (sum(points.get(name, 0.0) for name in group) for group in (PERCEPTION, COGNITION))
    return Summary(points, perception, cognition, unparsable)


def _points(subtask: str, images: dict[str, list[bool]]) -> float:
    for image, right in images.items():
        if len(right) != 2:
            raise ValueError(f"MME asks two questions about an image; {subtask} has {len(right)} about {image!r}")
    flat = [answer for right in images.values() for answer in right]
    return 100 * sum(flat) / len(flat) + 100 * sum(map(all, images.values())) / len(images)
