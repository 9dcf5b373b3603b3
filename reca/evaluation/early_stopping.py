"""A sequential test that may be evaluated after every prompt: measuring stops once the decision is settled.

The question is whether the difference of two overall scores, over *all* prompts of a benchmark, reaches a minimum. The
prompts are measured in random order, both models on each. After every prompt two bettors bet on the next value: one
that the whole set's mean is above the minimum, one that it is below. A bettor's capital is a non-negative
supermartingale if the opposite is true, so it ever exceeds 1/alpha with probability at most alpha (Ville's inequality),
however often it is checked. When it does, that bettor's side is the decision. With alpha half the error rate for each
side, the early decision differs from that of the complete measurement with probability at most the error rate, over
the random order.

The bets are those of Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting" (JRSS B, 2024),
for sampling without replacement: the remaining values must have the mean that makes up for the measured ones. The error
rate is checked by simulation in ``tests/unit/evaluation/test_early_stopping.py``.

A prompt's value is its difference times N / (C n), with N prompts in all, n in its category and C categories: the mean
of the values is then the plain mean of the categories' means, also where their sizes differ.
"""

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

LARGEST_BET = 0.75
"""The largest bet, as a share of the one that could lose all capital."""
Decision = Literal["reached", "missed"]


@dataclass(frozen=True)
class Outcome:
    """The result of a sequential measurement."""

    decision: Decision
    """``reached`` if the difference is at least the minimum."""
    early: bool
    """True if settled before all prompts were measured; otherwise the decision is exact."""
    num_measured: int
    """Prompts that were measured."""
    num_prompts: int


@dataclass
class _Bettor:
    """Bets against "the mean is at most ``mean``" on values from ``low`` to ``high``."""

    mean: float
    low: float
    high: float
    total: int
    log_capital: float = 0.0
    count: int = 0
    sum: float = 0.0
    squares: float = 0.0

    def update(self, value: float) -> None:
        """Bet on the next value, then add it to the statistics."""
        rest = (self.total * self.mean - self.sum) / (self.total - self.count)  # mean of the rest under the claim
        if rest < self.low - 1e-9:
            self.log_capital = math.inf  # the rest cannot be so small: the claim is refuted for certain
        elif self.log_capital < math.inf:
            self.log_capital += math.log1p(self._bet(rest) * (value - rest))
        self.count += 1
        self.sum += value
        self.squares += value * value

    def _bet(self, rest: float) -> float:
        """Return a bet that depends on past values only: near the best one for their mean and variance, but capped."""
        width = self.high - self.low
        mean = (self.sum + (self.low + self.high) / 2) / (self.count + 1)
        variance = max(self.squares / max(self.count, 1) - (self.sum / max(self.count, 1)) ** 2, 0.0)
        variance = (self.count * variance + width * width / 16) / (self.count + 1)
        edge = mean - rest
        best = edge / (variance + edge * edge)
        return min(max(best, 0.0), LARGEST_BET / max(rest - self.low, 1e-12))


class SequentialTest:
    """A decision about the mean of a finite set of values that arrive in random order.

    Args:
        minimum: The bound that the mean must reach.
        total: Number of values.
        low: Smallest possible value.
        high: Largest possible value.
        error_rate: Highest probability of another decision than that of the complete set.

    Raises:
        ValueError: An argument is out of its range.
    """

    def __init__(self, minimum: float, total: int, low: float, high: float, error_rate: float) -> None:
        if total < 1 or not low < high or not 0 < error_rate < 1:
            raise ValueError(f"no test of {total} values from {low} to {high} with the error rate {error_rate}")
        self._minimum, self._total, self._low, self._high = minimum, total, low, high
        self._threshold = math.log(2 / error_rate)
        self._above = _Bettor(minimum, low, high, total)
        self._below = _Bettor(-minimum, -high, -low, total)

    @property
    def count(self) -> int:
        """Number of values so far."""
        return self._above.count

    def update(self, value: float) -> Decision | None:
        """Add a value and return the decision, or ``None`` if it is not settled yet.

        Raises:
            ValueError: The value is out of range, or there are no more.
        """
        if not self._low - 1e-9 <= value <= self._high + 1e-9:
            raise ValueError(f"{value} is not from {self._low} to {self._high}")
        if self.count >= self._total:
            raise ValueError(f"there are only {self._total} values")
        value = min(max(value, self._low), self._high)
        self._above.update(value)
        self._below.update(-value)
        if self.count == self._total:
            return "reached" if self._above.sum / self._total >= self._minimum - 1e-12 else "missed"
        if self._above.log_capital >= self._threshold:
            return "reached"
        return "missed" if self._below.log_capital >= self._threshold else None


def shuffle_prompts(categories: Mapping[str, Sequence[str]], seed: int) -> list[tuple[str, str]]:
    """Return (category, prompt) of every measurement, in a random order that depends on the seed alone."""
    prompts = [(category, prompt) for category, names in sorted(categories.items()) for prompt in sorted(names)]
    random.Random(f"sequential-{seed}").shuffle(prompts)
    return prompts


def decide(
    differences: Iterable[tuple[str, float]], sizes: Mapping[str, int], minimum: float, error_rate: float
) -> Outcome:
    """Consume measurements until the decision is settled.

    Args:
        differences: Category and difference (-1..1) per prompt, in the order of :func:`shuffle_prompts`; a
            generator that measures lazily stops measuring.
        sizes: Number of prompts of every category.
        minimum: The bound that the difference of the overall scores must reach.
        error_rate: See :class:`SequentialTest`.

    Raises:
        ValueError: There are no prompts, or the measurements end before the decision.
    """
    total = sum(sizes.values())
    if not total or not all(sizes.values()):
        raise ValueError(f"every category needs prompts, not {dict(sizes)}")
    weights = {category: total / (len(sizes) * size) for category, size in sizes.items()}
    largest = max(weights.values())
    test = SequentialTest(minimum, total, -largest, largest, error_rate)
    for category, difference in differences:
        if decision := test.update(weights[category] * difference):
            return Outcome(decision, test.count < total, test.count, total)
    raise ValueError(f"the measurements ended after {test.count} of {total} prompts, before the decision was settled")
