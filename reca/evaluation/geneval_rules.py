"""GenEval's scoring rules, pure: from detections to "this image shows what was asked for".

After Ghosh et al., "GenEval" (arXiv 2310.11513), djghosh13/geneval@af4902f, MIT licence: ``evaluate_images.py``
and ``summary_scores.py``, re-implemented and proven on what the original answers (``tests/golden/geneval``).
Nothing here knows where detections or colours come from.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np

COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
"""The six tasks, in the order in which the original lists its prompts."""

Box = Sequence[float]
"""Left, top, right, bottom in pixels."""


class DetectedObject(Protocol):
    """What the rules need to know of a detection."""

    @property
    def name(self) -> str:
        """Class name."""

    @property
    def box(self) -> Box:
        """Left, top, right, bottom."""

    @property
    def score(self) -> float:
        """Confidence."""


D = TypeVar("D", bound=DetectedObject)


@dataclass(frozen=True)
class Options:
    """The original's options and their defaults."""

    threshold: float = 0.3
    """Scores must be above this, strictly."""
    counting_threshold: float = 0.9
    """The same for prompts that are tagged ``counting``."""
    max_objects: int = 16
    """Detections kept per class, best first."""
    max_overlap: float = 1.0
    """Drop a detection that overlaps a better one of its class by this IoU or more; 1 switches it off."""
    position_threshold: float = 0.1
    """Dead zone of :func:`relative_position`, as a fraction of the two boxes' summed sizes."""


DEFAULTS = Options()


@dataclass(frozen=True)
class ImageResult:
    """Whether one image is right, and what is wrong with it."""

    correct: bool
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class GenevalSummary:
    """Scores over many images."""

    overall: float
    """Plain mean of the tasks' rates: the number that is called "GenEval"."""
    tasks: Mapping[str, tuple[int, int]]
    """Correct images and images of each task."""
    images: float
    """Share of correct images."""
    prompts: float
    """Share of prompts with at least one correct image."""


def select(detections: Iterable[D], tag: str, options: Options = DEFAULTS) -> dict[str, list[D]]:
    """The detections that count, by class, best first.

    Args:
        detections: Everything that the detector returned for one image.
        tag: The prompt's task; ``counting`` asks for more confidence.
        options: Thresholds and limits.
    """
    threshold = options.counting_threshold if tag == "counting" else options.threshold
    by_class: dict[str, list[D]] = {}
    for detection in detections:
        by_class.setdefault(detection.name, []).append(detection)
    selected = {}
    for name, found in by_class.items():
        # NumPy's argsort reversed, as in the original: it decides which of two equal scores comes first.
        order = np.argsort([detection.score for detection in found])[::-1]
        best = [found[i] for i in order if found[i].score > threshold][: options.max_objects]
        if kept := _without_overlap(best, options.max_overlap):
            selected[name] = kept
    return selected


def _without_overlap(ordered: Sequence[D], max_overlap: float) -> list[D]:
    if max_overlap >= 1:
        return list(ordered)
    kept: list[D] = []
    for detection in ordered:
        if all(box_iou(better.box, detection.box) < max_overlap for better in kept):
            kept.append(detection)
    return kept


def box_iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes whose last row and column belong to them (widths are +1)."""

    def area(left: float, top: float, right: float, bottom: float) -> float:
        return max(right - left + 1, 0) * max(bottom - top + 1, 0)

    both = area(max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))
    union = area(*a[:4]) + area(*b[:4]) - both
    return both / union if union else 0.0


def relative_position(a: Box, b: Box, threshold: float = 0.1) -> set[str]:
    """Where ``a`` stands seen from ``b``: up to two of "left of", "right of", "above", "below".

    The offset of the centres is shortened along each axis by ``threshold`` x the boxes' summed sizes and divided
    by the length of the *unshortened* offset; a component beyond one half is a relation. In float32, as the
    detector of the original delivers its boxes: cases at the very edge depend on it.
    """
    first, second = np.asarray(a[:4], np.float32), np.asarray(b[:4], np.float32)
    center = (first.reshape(2, 2).mean(axis=0), second.reshape(2, 2).mean(axis=0))
    size = (np.abs(first[2:] - first[:2]), np.abs(second[2:] - second[:2]))
    offset = center[0] - center[1]
    shortened = np.maximum(np.abs(offset) - threshold * (size[0] + size[1]), 0) * np.sign(offset)
    if np.all(np.abs(shortened) < 1e-3):
        return set()
    dx, dy = shortened / np.linalg.norm(offset)
    relations = {"left of": dx < -0.5, "right of": dx > 0.5, "above": dy < -0.5, "below": dy > 0.5}
    return {relation for relation, holds in relations.items() if holds}


def evaluate_image(
    objects: Mapping[str, Sequence[D]],
    metadata: Mapping[str, Any],
    colors_of: Callable[[Sequence[D], str], Sequence[str]],
    position_threshold: float = 0.1,
) -> ImageResult:
    """Whether the selected objects of one image satisfy a prompt.

    Args:
        objects: From :func:`select`.
        metadata: GenEval's entry: ``include`` clauses (class, count, perhaps color, perhaps position: a relation and
            the index of the clause it refers to), all of which must hold, and ``exclude`` clauses.
        colors_of: The colours of some objects of one class; asked only when a clause names a colour.
        position_threshold: See :class:`Options`.

    Returns:
        The verdict, with reasons in the original's words.
    """
    reasons: list[str] = []
    groups: list[Sequence[D] | None] = []
    for clause in metadata.get("include", ()):
        found = objects.get(clause["class"], ())[: clause["count"]]
        problem = _count_problem(clause, found) or _color_problem(clause, found, colors_of)
        if not problem and "position" in clause:
            problem = _position_problem(clause, found, groups, position_threshold)
        if problem:
            reasons.append(problem)
        groups.append(None if problem else found)
    for clause in metadata.get("exclude", ()):
        number = len(objects.get(clause["class"], ()))
        if number >= clause["count"]:
            reasons.append(f"expected {clause['class']}<{clause['count']}, found {number}")
    return ImageResult(not reasons, tuple(reasons))


def _count_problem(clause: Mapping[str, Any], found: Sequence[DetectedObject]) -> str | None:
    if len(found) >= clause["count"]:
        return None
    return f"expected {clause['class']}>={clause['count']}, found {len(found)}"


def _color_problem(
    clause: Mapping[str, Any], found: Sequence[D], colors_of: Callable[[Sequence[D], str], Sequence[str]]
) -> str | None:
    if "color" not in clause:
        return None
    wanted, colors = clause["color"], list(colors_of(found, clause["class"]))
    if colors.count(wanted) >= clause["count"]:
        return None
    seen = ", ".join(f"{colors.count(color)} {color}" for color in COLORS if color in colors)
    expected = f"{wanted} {clause['class']}>={clause['count']}"
    return f"expected {expected}, found {colors.count(wanted)} {wanted}; and {seen}"


def _position_problem(
    clause: Mapping[str, Any], found: Sequence[D], groups: Sequence[Sequence[D] | None], threshold: float
) -> str | None:
    """Every found object must stand in the relation to every object of the target clause."""
    wanted, target = clause["position"]
    others = groups[target]
    if others is None:
        return f"no target for {clause['class']} to be {wanted}"
    for detection in found:
        for other in others:
            relations = relative_position(detection.box, other.box, threshold)
            if wanted not in relations:
                return f"expected {clause['class']} {wanted} target, found {' and '.join(sorted(relations))} target"
    return None


def summarise(results: Iterable[tuple[str, str, bool]]) -> GenevalSummary:
    """Scores of many images.

    Args:
        results: Task, prompt (anything that tells prompts apart) and verdict of each image.

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
    flat = [correct for values in tasks.values() for correct in values]
    return GenevalSummary(
        overall=float(np.mean([np.mean(values) for values in tasks.values()])),
        tasks={tag: (sum(values), len(values)) for tag, values in tasks.items()},
        images=float(np.mean(flat)),
        prompts=float(np.mean(list(prompts.values()))),
    )
