"""GenEval's options beyond its defaults: no official score uses them, but recorded answers of the original may."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar
from unittest.mock import patch

from reca.evaluation import geneval_rules as geneval

CONSTANTS = {"threshold": ("THRESHOLD", float), "counting_threshold": ("COUNTING_THRESHOLD", float),
             "max_objects": ("MAX_OBJECTS", int), "position_threshold": ("POSITION_THRESHOLD", float)}  # fmt: skip
D = TypeVar("D", bound=geneval.NamedBox)


@contextmanager
def geneval_options(options: Mapping[str, Any]) -> Iterator[None]:
    """Set the rules' constants to recorded options."""
    values = {name: kind(options[option]) for option, (name, kind) in CONSTANTS.items() if option in options}
    with ExitStack() as stack:
        for name, value in values.items():
            stack.enter_context(patch.object(geneval, name, value))
        yield


def select(detections: Iterable[D], tag: str, max_overlap: float = 1.0) -> dict[str, list[D]]:
    """Select as reca does, then drop detections whose IoU with a better one of their class is ``max_overlap`` or more.

    1, the default, drops none.
    """
    selected = geneval.select(detections, tag)
    if max_overlap >= 1:
        return selected
    for name, candidates in selected.items():
        best: list[D] = []
        for detection in candidates:
            if all(box_iou(better.box, detection.box) < max_overlap for better in best):
                best.append(detection)
        selected[name] = best
    return selected


def box_iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the intersection over union of two boxes that contain their last row and column (widths are +1)."""

    def area(left: float, top: float, right: float, bottom: float) -> float:
        return max(right - left + 1, 0) * max(bottom - top + 1, 0)

    intersection = area(max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))
    union = area(*a[:4]) + area(*b[:4]) - intersection
    return intersection / union if union else 0.0
