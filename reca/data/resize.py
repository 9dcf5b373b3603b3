"""The rule that gives the size of an image at a network's input or output."""

from dataclasses import dataclass
from typing import Literal

Rule = Literal["crop", "stretch", "fit"]

MAX_PIXELS = 14 * 14 * 9 * 1024
"""Limit for images that keep their aspect ratio, applied before ``max_side``: BAGEL's own."""


@dataclass(frozen=True)
class Resize:
    """A rule for images of any size: ``fit`` keeps their aspect ratio, the other rules give squares."""

    rule: Rule
    """``crop`` the largest centred square, ``stretch`` to a square, or ``fit`` into the limits below."""
    max_side: int
    """Side of the square in pixels; for ``fit`` the longest side allowed."""
    min_side: int = 1
    """For ``fit``: the shortest side allowed, unless ``max_side`` forbids it."""
    multiple: int = 1
    """For ``fit``: sides are multiples of this."""

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width after resizing.

        ``fit`` computes as BAGEL's ``MaxLongEdgeMinShortEdgeResize``, including its three roundings in sequence
        (ByteDance-Seed/Bagel, data/transforms.py): 768 x 1024 within 224 to 224 by 14 gives 168 x 224.
        """
        if self.rule != "fit":
            return self.max_side, self.max_side
        scale = max(min(1.0, self.max_side / max(height, width)), self.min_side / min(height, width))
        size = self._scale(height, width, scale)
        if size[0] * size[1] > MAX_PIXELS:
            size = self._scale(*size, MAX_PIXELS / (size[0] * size[1]))
        if max(size) > self.max_side:
            size = self._scale(*size, self.max_side / max(size))
        return size

    def _scale(self, height: int, width: int, factor: float) -> tuple[int, int]:
        return self._round(height * factor), self._round(width * factor)

    def _round(self, side: float) -> int:
        return max(self.multiple, round(round(side) / self.multiple) * self.multiple)
