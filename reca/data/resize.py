"""How big an image is when a network reads or draws it."""

from dataclasses import dataclass
from typing import Literal

Rule = Literal["crop", "stretch", "fit"]

MOST_PIXELS = 14 * 14 * 9 * 1024
"""Of an image that keeps its shape, before its longest side is looked at: BAGEL's own bound."""


@dataclass(frozen=True)
class Resize:
    """What becomes of an image of any size and shape."""

    rule: Rule
    """The largest centred square is cut out of it, it is stretched to a square, or it keeps its shape."""
    longest: int
    """Side of the square in pixels; where the shape is kept: no side is longer."""
    shortest: int = 1
    """Where the shape is kept: no side is shorter, unless ``longest`` forbids it."""
    step: int = 1
    """Where the shape is kept: sides are multiples of this, so it is kept as far as these allow."""

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of what becomes of an image.

        Shapes are kept by the arithmetic of BAGEL's ``MaxLongEdgeMinShortEdgeResize``, its three roundings in a row
        included (ByteDance-Seed/Bagel, data/transforms.py): 768 x 1024 within 224 to 224 by 14 is 168 x 224.
        """
        if self.rule != "fit":
            return self.longest, self.longest
        scale = max(min(1.0, self.longest / max(height, width)), self.shortest / min(height, width))
        size = self._scaled(height, width, scale)
        if size[0] * size[1] > MOST_PIXELS:
            size = self._scaled(*size, MOST_PIXELS / (size[0] * size[1]))
        if max(size) > self.longest:
            size = self._scaled(*size, self.longest / max(size))
        return size

    def _scaled(self, height: int, width: int, scale: float) -> tuple[int, int]:
        return self._rounded(height * scale), self._rounded(width * scale)

    def _rounded(self, side: float) -> int:
        return max(self.step, round(round(side) / self.step) * self.step)
