"""Rules of our own for edited scenes, pure: was the edit made, and is the rest as it was?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from reca.evaluation.geneval_rules import Box, relative_position

NEAR = 3.9 / 24
"""A shape is at its place when its centre is nearer than this along x and y, as a fraction of the image's sides: half
the least distance of two shapes, so that it is nowhere near another's place."""


class DetectedShape(Protocol):
    """A detection as the rules need it."""

    @property
    def name(self) -> str:
        """Kind of shape."""

    @property
    def color(self) -> str:
        """Its colour."""

    @property
    def box(self) -> Box:
        """Left, top, right, bottom in pixels."""


@dataclass(frozen=True)
class EditResult:
    """The result of one edited image."""

    done: bool
    """The shape that the instruction names is as it asks, and only once."""
    kept: bool
    """All other shapes are where they were, and no other shape was added."""


def evaluate_edit(truth: Mapping[str, Any], detections: Sequence[DetectedShape], width: int, height: int) -> EditResult:
    """Compare the detections in an edited image with its ground truth.

    Args:
        truth: ``rest``, each (kind, colour, x, y); ``before`` and ``after``, the edited shape's (kind, colour), or
            ``None``; ``place``, where it must be, or ``None``; ``relation``, how it must stand to which of the rest,
            or ``None``. Places are fractions of the image's sides.
        detections: All detections in the image.
        width: Width of the image in pixels.
        height: Height of the image in pixels.
    """

    def at(detection: DetectedShape, x: float, y: float) -> bool:
        left, top, right, bottom = detection.box
        return max(abs((left + right) / 2 / width - x), abs((top + bottom) / 2 / height - y)) < NEAR

    unmatched, rest = list(detections), list[DetectedShape | None]()
    for kind, color, x, y in truth["rest"]:
        matches = (shape for shape in unmatched if (shape.name, shape.color) == (kind, color) and at(shape, x, y))
        rest.append(next(matches, None))
        unmatched = [shape for shape in unmatched if shape is not rest[-1]]
    edited = [shape for shape in unmatched if [shape.name, shape.color] in (truth["before"], truth["after"])]
    rest_is_kept = None not in rest and len(edited) == len(unmatched)
    if truth["after"] is None:
        return EditResult(not edited, rest_is_kept)
    if [[shape.name, shape.color] for shape in edited] != [truth["after"]]:
        return EditResult(done=False, kept=rest_is_kept)
    position, relation = truth["place"], truth["relation"]
    if position is not None and not at(edited[0], *position):
        return EditResult(done=False, kept=rest_is_kept)
    if relation is not None:
        direction, other = relation[0], rest[relation[1]]
        is_done = other is not None and direction in relative_position(edited[0].box, other.box)
        return EditResult(is_done, rest_is_kept)
    return EditResult(done=True, kept=rest_is_kept)
