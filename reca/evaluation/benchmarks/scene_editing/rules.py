"""Rules of our own for edited scenes, pure: was the edit made, and is the rest as it was?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from reca.evaluation.geneval_rules import Box, relative_position

NEAR = 3.9 / 24
"""A shape is at its place when its centre is nearer than this along x and y, as a fraction of the image's sides: half
the least distance of two shapes, so that it is nowhere near another's place."""


class DetectedShape(Protocol):
    """What the rules need to know of a detection."""

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
    """About one edited image."""

    done: bool
    """The shape that the instruction names is as it asks, and only once."""
    kept: bool
    """All other shapes are where they were, and nothing has come besides."""


def evaluate_edit(truth: Mapping[str, Any], detections: Sequence[DetectedShape], width: int, height: int) -> EditResult:
    """Compare what is seen with what should be.

    Args:
        truth: ``rest``, each (kind, colour, x, y); ``before`` and ``after``, the edited shape's (kind, colour), or
            ``None``; ``place``, where it must be, or ``None``; ``relation``, how it must stand to which of the rest,
            or ``None``. Places are fractions of the image's sides.
        detections: All that was found.
        width: Of the image, in pixels.
        height: Of the image, in pixels.
    """

    def at(detection: DetectedShape, x: float, y: float) -> bool:
        left, top, right, bottom = detection.box
        return max(abs((left + right) / 2 / width - x), abs((top + bottom) / 2 / height - y)) < NEAR

    left_over, rest = list(detections), list[DetectedShape | None]()
    for kind, color, x, y in truth["rest"]:
        found = next((one for one in left_over if (one.name, one.color) == (kind, color) and at(one, x, y)), None)
        rest.append(found)
        left_over = [one for one in left_over if one is not found]
    edited = [one for one in left_over if [one.name, one.color] in (truth["before"], truth["after"])]
    kept = None not in rest and len(edited) == len(left_over)
    if truth["after"] is None:
        return EditResult(not edited, kept)
    if [[one.name, one.color] for one in edited] != [truth["after"]]:
        return EditResult(done=False, kept=kept)
    place, wanted = truth["place"], truth["relation"]
    if place is not None and not at(edited[0], *place):
        return EditResult(done=False, kept=kept)
    if wanted is not None:
        other = rest[wanted[1]]
        return EditResult(other is not None and wanted[0] in relative_position(edited[0].box, other.box), kept)
    return EditResult(done=True, kept=kept)
