"""Stop measuring when a gate's decision is settled: a test that may be looked at after every prompt.

The question is whether the difference of two overall scores, over *all* prompts of a benchmark, reaches a minimum. The
prompts are measured in a random order, both models on each. After every prompt two bettors are asked: one bets that the
whole set's mean is above the minimum, one that it is below. A bettor's capital is a non-negative supermartingale if the
opposite is true, so it ever exceeds 1/alpha with probability at most alpha (Ville's inequality), whenever and however
often one looks. When one does, its side is the decision. With alpha half the error rate for each side, the decision
made early differs from that of the complete measurement with probability at most the error rate, over the random
order.

The bets are those of Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting" (JRSS B, 2024),
for sampling without replacement: what is left must have the mean that makes up for what was seen. The error rate is
proven by simulation in ``tests/unit/evaluation/test_early_stopping.py``.

A prompt's value is its difference times N / (C n), with N prompts in all, n in its category and C categories: the mean
of the values is then the plain mean of the categories' means, whatever their sizes.
"""

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

BOLDNESS = 0.75
"""The largest bet, as a share of the one that could lose everything."""
Side = Literal["reached", "missed"]


@dataclass(frozen=True)
class Outcome:
    """What a sequential measurement came to."""

    decision: Side
    """Whether the difference reaches the minimum."""
    early: bool
    """Whether it was settled before all prompts were measured; if not, it is exact."""
    measured: int
    total: int
    """Prompts."""
    images_per_prompt: int

    @property
    def images_saved(self) -> int:
        """Images that neither model had to draw, both together."""
        return 2 * (self.total - self.measured) * self.images_per_prompt

    def __str__(self) -> str:
        share = self.measured / self.total
        told = f"{self.decision} after {self.measured} of {self.total} prompts ({share:.0%})"
        return f"{told}; {self.images_saved} images of {2 * self.total * self.images_per_prompt} saved"


@dataclass
class _Bettor:
    """Bets against "the mean is at most ``mean``" on values from ``low`` to ``high``."""

    mean: float
    low: float
    high: float
    total: int
    log_capital: float = 0.0
    seen: int = 0
    sum: float = 0.0
    squares: float = 0.0

    def see(self, value: float) -> None:
        """Bet on the next value, then look at it."""
        left = (self.total * self.mean - self.sum) / (self.total - self.seen)  # the rest's mean, if the claim holds
        if left < self.low - 1e-9:
            self.log_capital = math.inf  # the rest cannot be so small: the claim is refuted for certain
        elif self.log_capital < math.inf:
            self.log_capital += math.log1p(self._bet(left) * (value - left))
        self.seen += 1
        self.sum += value
        self.squares += value * value

    def _bet(self, left: float) -> float:
        """A fraction that depends on the past only: near the best one for its mean and variance, never too bold."""
        width = self.high - self.low
        mean = (self.sum + (self.low + self.high) / 2) / (self.seen + 1)
        variance = max(self.squares / max(self.seen, 1) - (self.sum / max(self.seen, 1)) ** 2, 0.0)
        variance = (self.seen * variance + width * width / 16) / (self.seen + 1)
        edge = mean - left
        best = edge / (variance + edge * edge)
        boldest = BOLDNESS / max(left - self.low, 1e-12)
        return min(max(best, 0.0), boldest)


class SequentialGate:
    """A decision about the mean of a finite set of values, seen one by one in a random order.

    Args:
        minimum: What the mean must reach.
        total: How many values there are.
        low: Smallest possible value.
        high: Largest possible value.
        error_rate: Highest probability of deciding otherwise than the complete set would.

    Raises:
        ValueError: An argument is out of its range.
    """

    def __init__(self, minimum: float, total: int, low: float, high: float, error_rate: float = 0.05) -> None:
        if total < 1 or not low < high or not 0 < error_rate < 1:
            raise ValueError(f"no test of {total} values from {low} to {high} with the error rate {error_rate}")
        self._minimum, self._total, self._low, self._high = minimum, total, low, high
        self._threshold = math.log(2 / error_rate)
        self._above = _Bettor(minimum, low, high, total)
        self._below = _Bettor(-minimum, -high, -low, total)
        self.decision: Side | None = None

    @property
    def seen(self) -> int:
        """Values seen so far."""
        return self._above.seen

    def see(self, value: float) -> Side | None:
        """Look at one more value; returns the decision once there is one, which then stays.

        Raises:
            ValueError: The value is out of range, or there are no more.
        """
        if not self._low - 1e-9 <= value <= self._high + 1e-9:
            raise ValueError(f"{value} is not from {self._low} to {self._high}")
        if self.seen >= self._total:
            raise ValueError(f"all {self._total} values have been seen")
        value = min(max(value, self._low), self._high)
        self._above.see(value)
        self._below.see(-value)
        if self.decision is None:
            if self.seen == self._total:
                reached = self._above.sum / self._total >= self._minimum - 1e-12
                self.decision = "reached" if reached else "missed"
            elif self._above.log_capital >= self._threshold:
                self.decision = "reached"
            elif self._below.log_capital >= self._threshold:
                self.decision = "missed"
        return self.decision


def order_of(categories: Mapping[str, Sequence[str]], seed: int) -> list[tuple[str, str]]:
    """Category and prompt of every measurement, in a random order that depends on the seed alone."""
    prompts = [(category, prompt) for category, names in sorted(categories.items()) for prompt in sorted(names)]
    random.Random(f"sequential-{seed}").shuffle(prompts)
    return prompts


def decide(
    differences: Iterable[tuple[str, float]],
    sizes: Mapping[str, int],
    minimum: float,
    error_rate: float = 0.05,
    images_per_prompt: int = 1,
) -> Outcome:
    """Take measurements only until the decision is settled.

    Args:
        differences: Category and difference (-1..1) of one prompt after the other, in the order of :func:`order_of`;
            a generator that measures when it is asked stops measuring.
        sizes: Prompts of every category.
        minimum: What the difference of the overall scores must reach.
        error_rate: See :class:`SequentialGate`.
        images_per_prompt: Of each model, to tell what was saved.

    Raises:
        ValueError: There are no prompts, or the measurements end before the decision.
    """
    total = sum(sizes.values())
    if not total or not all(sizes.values()):
        raise ValueError(f"every category needs prompts, not {dict(sizes)}")
    weights = {category: total / (len(sizes) * size) for category, size in sizes.items()}
    largest = max(weights.values())
    gate = SequentialGate(minimum, total, -largest, largest, error_rate)
    for category, difference in differences:
        if decision := gate.see(weights[category] * difference):
            return Outcome(decision, gate.seen < total, gate.seen, total, images_per_prompt)
    raise ValueError(f"the measurements ended after {gate.seen} of {total} prompts, before anything was settled")
