"""How big an image is when a network reads or draws it."""

from dataclasses import dataclass
from typing import Literal

Rule = Literal["crop", "stretch", "fit"]

MAX_PIXELS = 14 * 14 * 9 * 1024
"""Of an image that keeps its shape, before its max_side side is looked at: BAGEL's own bound."""


@dataclass(frozen=True)
class Resize:
    """What becomes of an image of any size and shape."""

    rule: Rule
    """The largest centred square is cut out of it, it is stretched to a square, or it keeps its shape."""
    max_side: int
    """Side of the square in pixels; where the shape is kept: no side is longer."""
    min_side: int = 1
    """Where the shape is kept: no side is shorter, unless ``max_side`` forbids it."""
    multiple: int = 1
    """Where the shape is kept: sides are multiples of this, so it is kept as far as these allow."""

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of what becomes of an image.

        Shapes are kept by the arithmetic of BAGEL's ``MaxLongEdgeMinShortEdgeResize``, its three roundings in a row
        included (ByteDance-Seed/Bagel, data/transforms.py): 768 x 1024 within 224 to 224 by 14 is 168 x 224.
        """
        if self.rule != "fit":
            return self.max_side, self.max_side
        scale = max(min(1.0, self.max_side / max(height, width)), self.min_side / min(height, width))
        size = self._scaled(height, width, scale)
        if size[0] * size[1] > MAX_PIXELS:
            size = self._scaled(*size, MAX_PIXELS / (size[0] * size[1]))
        if max(size) > self.max_side:
            size = self._scaled(*size, self.max_side / max(size))
        return size

    def _scaled(self, height: int, width: int, scale: float) -> tuple[int, int]:
        return self._rounded(height * scale), self._rounded(width * scale)

    def _rounded(self, side: float) -> int:
        return max(self.multiple, round(round(side) / self.multiple) * self.multiple)
