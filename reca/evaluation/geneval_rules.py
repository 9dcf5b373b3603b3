"""GenEval's scoring rules as pure functions: from detections to an image's result, and the summary of all images.

After Ghosh et al., "GenEval" (arXiv 2310.11513), djghosh13/geneval@af4902f, MIT licence: ``evaluate_images.py`` with
its default options, and ``summary_scores.py``; re-implemented, and compared with the original's answers in
``tests/golden/geneval``. The module is independent of the detector and the colour classifier.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np

COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
"""The six tasks, in the order in which the original lists its prompts."""
THRESHOLD = 0.3
"""Detections count if their score is strictly above this."""
COUNTING_THRESHOLD = 0.9
"""The threshold for prompts with the tag ``counting``."""
MAX_OBJECTS = 16
"""Detections per class that count, best first."""
POSITION_THRESHOLD = 0.1
"""Dead zone of :func:`relative_position`, as a fraction of the sum of the two boxes' sizes."""

Box = Sequence[float]
"""Left, top, right, bottom in pixels."""


class NamedBox(Protocol):
    """The attributes of a detection that the rules use."""

    @property
    def name(self) -> str:
        """Class name."""

    @property
    def box(self) -> Box:
        """Left, top, right, bottom."""

    @property
    def score(self) -> float:
        """Confidence."""


D = TypeVar("D", bound=NamedBox)


@dataclass(frozen=True)
class ImageResult:
    """The result for one image, with the reasons against it."""

    correct: bool
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class GenevalSummary:
    """Scores over many images."""

    overall: float
    """Plain mean of the tasks' rates: the number that is called "GenEval"."""
    tasks: Mapping[str, tuple[int, int]]
    """Correct images and all images by task."""
    images: float
    """Share of correct images."""
    prompts: float
    """Share of prompts with at least one correct image."""


def select(detections: Iterable[D], tag: str) -> dict[str, list[D]]:
    """Return the detections that count, by class, best first.

    Args:
        detections: All detections in one image.
        tag: The prompt's task; ``counting`` has a higher threshold.
    """
    threshold = COUNTING_THRESHOLD if tag == "counting" else THRESHOLD
    by_class: dict[str, list[D]] = {}
    for detection in detections:
        by_class.setdefault(detection.name, []).append(detection)
    selected = {}
    for name, candidates in by_class.items():
        # NumPy's argsort reversed, as in the original: it decides which of two equal scores comes first.
        order = np.argsort([detection.score for detection in candidates])[::-1]
        if best := [candidates[i] for i in order if candidates[i].score > threshold][:MAX_OBJECTS]:
            selected[name] = best
    return selected


def relative_position(a: Box, b: Box) -> set[str]:
    """Return the relations of ``a`` to ``b``: up to two of "left of", "right of", "above", "below".

    The offset of the centres is shortened along each axis by ``POSITION_THRESHOLD`` x the sum of the boxes' sizes and
    divided by the length of the *unshortened* offset; a component beyond one half is a relation. In float32, as the
    detector of the original delivers its boxes: cases at the very edge depend on it.
    """
    first, second = np.asarray(a[:4], np.float32), np.asarray(b[:4], np.float32)
    center = (first.reshape(2, 2).mean(axis=0), second.reshape(2, 2).mean(axis=0))
    size = (np.abs(first[2:] - first[:2]), np.abs(second[2:] - second[:2]))
    offset = center[0] - center[1]
    shortened = np.maximum(np.abs(offset) - POSITION_THRESHOLD * (size[0] + size[1]), 0) * np.sign(offset)
    if np.all(np.abs(shortened) < 1e-3):
        return set()
    dx, dy = shortened / np.linalg.norm(offset)
    relations = {"left of": dx < -0.5, "right of": dx > 0.5, "above": dy < -0.5, "below": dy > 0.5}
    return {relation for relation, holds in relations.items() if holds}


def evaluate_image(
    objects: Mapping[str, Sequence[D]],
    metadata: Mapping[str, Any],
    colors_of: Callable[[Sequence[D], str], Sequence[str]],
) -> ImageResult:
    """Evaluate the selected objects in an image against a prompt.

    Args:
        objects: The objects that :func:`select` returns.
        metadata: GenEval's entry: ``include`` clauses (class, count, optional color, optional position: a relation
            and the index of the clause it refers to), all of which must hold, and ``exclude`` clauses.
        colors_of: Returns objects' colours, given the objects and their class; called only if a clause names a colour.

    Returns:
        The result, with reasons in the original's words.
    """
    reasons: list[str] = []
    groups: list[Sequence[D] | None] = []
    for clause in metadata.get("include", ()):
        candidates = objects.get(clause["class"], ())[: clause["count"]]
        problem = _count_problem(clause, candidates) or _color_problem(clause, candidates, colors_of)
        if not problem and "position" in clause:
            problem = _position_problem(clause, candidates, groups)
        if problem:
            reasons.append(problem)
        groups.append(None if problem else candidates)
    for clause in metadata.get("exclude", ()):
        number = len(objects.get(clause["class"], ()))
        if number >= clause["count"]:
            reasons.append(f"expected {clause['class']}<{clause['count']}, found {number}")
    return ImageResult(not reasons, tuple(reasons))


def _count_problem(clause: Mapping[str, Any], candidates: Sequence[NamedBox]) -> str | None:
    if len(candidates) >= clause["count"]:
        return None
    return f"expected {clause['class']}>={clause['count']}, found {len(candidates)}"


def _color_problem(
    clause: Mapping[str, Any], candidates: Sequence[D], colors_of: Callable[[Sequence[D], str], Sequence[str]]
) -> str | None:
    if "color" not in clause:
        return None
    expected, colors = clause["color"], list(colors_of(candidates, clause["class"]))
    if colors.count(expected) >= clause["count"]:
        return None
    counts = ", ".join(f"{colors.count(color)} {color}" for color in COLORS if color in colors)
    objects = f"{expected} {clause['class']}>={clause['count']}"
    return f"expected {objects}, found {colors.count(expected)} {expected}; and {counts}"


def _position_problem(
    clause: Mapping[str, Any], candidates: Sequence[D], groups: Sequence[Sequence[D] | None]
) -> str | None:
    """Every candidate must have the relation to every object of the target clause."""
    expected, target = clause["position"]
    target_objects = groups[target]
    if target_objects is None:
        return f"no target for {clause['class']} to be {expected}"
    for candidate in candidates:
        for target_object in target_objects:
            relations = relative_position(candidate.box, target_object.box)
            if expected not in relations:
                return f"expected {clause['class']} {expected} target, found {' and '.join(sorted(relations))} target"
    return None


def summarise(results: Iterable[tuple[str, str, bool]]) -> GenevalSummary:
    """Summarise the results of many images.

    Args:
        results: Each image's task, prompt (text or identifier) and correctness.

    Raises:
        ValueError: There are no results.
    """
    tasks: dict[str, list[bool]] = {}
    prompts: dict[str, bool] = {}
    for tag, prompt, correct in results:
        tasks.setdefault(tag, []).append(correct)
        prompts[prompt] = prompts.get(prompt, False) or correct
    if not tasks:
        raise ValueError("there are no results to summarise")
    images = [correct for values in tasks.values() for correct in values]
    return GenevalSummary(
        overall=float(np.mean([np.mean(values) for values in tasks.values()])),
        tasks={tag: (sum(values), len(values)) for tag, values in tasks.items()},
        images=float(np.mean(images)),
        prompts=float(np.mean(list(prompts.values()))),
    )
