"""Axes: round ticks, and where a value stands between the ends."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """A linear axis from ``low`` to ``high`` with ticks at round values."""

    low: float
    high: float
    ticks: tuple[float, ...]

    def __call__(self, value: float) -> float:
        """Where a value stands, as a fraction of the axis (kept inside it)."""
        return min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))


FLAT = 1e-9
"""Values closer than this are one value: the axis is then made around it."""
PERCENT = Scale(0.0, 1.0, (0.0, 0.25, 0.5, 0.75, 1.0))


def nice_scale(values: Sequence[float], count: int = 4) -> Scale:
    """A scale that holds all finite values, with about ``count`` steps of 1, 2 or 5 times a power of ten."""
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    low, high = min(finite), max(finite)
    if high - low < FLAT:
        around = abs(low) if abs(low) > FLAT else 1.0
        low, high = low - 0.5 * around, high + 0.5 * around
    step = _nice_step((high - low) / count)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(round(number * step, 12) for number in range(first, last + 1))
    return Scale(ticks[0], ticks[-1], ticks)


def _nice_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next((factor * power for factor in (1, 2, 5) if factor * power >= rough * 0.999), 10 * power)
