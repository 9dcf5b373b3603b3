"""Promotion rules: data in ``conf/``, evaluated on measured deltas. Pure: numbers in, a decision with reasons out.

A rule is passed, failed or skipped, with a reason:

- *passed* if its delta is at least ``minimum`` or, with ``bound: lower``, if the whole interval is above
  ``minimum`` (a model that equals its base has shown no gain); NaN never passes.
- *failed* also if its benchmark was not measured: measuring less must not help a model.
- *skipped* only if it compares with the champion and there is none. The first model is thus compared with its base
  alone.
- *failed as "not comparable"* if the champion was measured on another benchmark set: scores of different prompt sets
  cannot be compared, so such a model is refused.

The decision passes if no rule failed. ``reca report`` evaluates the rules against the base; ``reca register`` adds the
rules against the champion, while it holds the registry's lock.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from reca.config import PromotionRule
from reca.evaluation.statistics import BenchmarkDelta, Delta

Deltas = Mapping[str, BenchmarkDelta]
"""Benchmark -> differences."""


@dataclass(frozen=True)
class Champion:
    """The version that a new one is compared with."""

    version: str
    deltas: Deltas | None
    """New minus champion, paired over the same prompts; ``None``: the two cannot be compared."""
    obstacle: str = ""
    """The reason that they cannot be compared."""


@dataclass(frozen=True)
class RuleResult:
    """The outcome of a rule."""

    text: str
    """The rule in words, such as ``scenes overall versus base: the change must be at least -2.00 points``."""
    passed: bool
    value: float | None
    """The number that was compared with ``minimum``; ``None`` if it was not measured."""
    minimum: float
    reason: str
    skipped: bool = False

    def __str__(self) -> str:
        outcome = "skipped" if self.skipped else "passed" if self.passed else "failed"
        return f"{outcome}: {self.text} ({self.reason})"


@dataclass(frozen=True)
class PromotionDecision:
    """The outcome of all rules: whether a model may become champion, and why."""

    rules: tuple[RuleResult, ...]

    @property
    def passed(self) -> bool:
        """Return whether no rule failed."""
        return all(rule.passed or rule.skipped for rule in self.rules)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Return the reasons of a refusal: one line per failed rule; empty for a model that passed."""
        return tuple(f"{rule.text}: {rule.reason}" for rule in self.rules if not (rule.passed or rule.skipped))

    def to_dict(self) -> dict[str, Any]:
        """Return ``{"passed": …, "rules": […]}``, the head of ``verdict.json``."""
        return {"passed": self.passed, "rules": [asdict(rule) for rule in self.rules]}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Self:
        """Return the decision in ``verdict.json``; undoes :meth:`to_dict`."""
        return cls(tuple(RuleResult(**rule) for rule in record["rules"]))


def evaluate_rules(rules: Sequence[PromotionRule], deltas: Deltas, reason_to_skip: str) -> PromotionDecision:
    """Evaluate the rules against the base; skip those against the champion.

    Args:
        rules: ``config.register_.promotion_rules``.
        deltas: Aligned minus base, per benchmark.
        reason_to_skip: The reason of the rules against the champion.
    """
    return PromotionDecision(
        tuple(
            _evaluate(rule, deltas) if rule.versus == "base" else _result(rule, reason_to_skip, skipped=True)
            for rule in rules
        )
    )


def evaluate_champion_rules(
    decision: PromotionDecision, rules: Sequence[PromotionRule], champion: Champion | None, no_champion: str
) -> PromotionDecision:
    """Return the decision with its rules against the champion evaluated; the others keep their results.

    Args:
        decision: Result of :func:`evaluate_rules` on the same rules.
        rules: ``config.register_.promotion_rules``.
        champion: The present champion; ``None`` skips its rules.
        no_champion: The reason of these rules then.
    """
    results = []
    for rule, result in zip(rules, decision.rules, strict=True):
        if rule.versus == "base":
            results.append(result)
        elif champion is None:
            results.append(_result(rule, no_champion, skipped=True))
        elif champion.deltas is None:
            reason = f"not comparable with champion version {champion.version}: {champion.obstacle}"
            results.append(_result(rule, reason))
        else:
            results.append(_evaluate(rule, champion.deltas))
    return PromotionDecision(tuple(results))


def describe(rule: PromotionRule) -> str:
    """Return a rule in words; differences are in points, hundredths of the score's range."""
    bound = "the lower bound of the change must be above" if rule.bound == "lower" else "the change must be at least"
    return f"{rule.benchmark} {rule.category} versus {rule.versus}: {bound} {_points(rule.minimum)} points"


def describe_delta(delta: Delta) -> str:
    """Return a difference in words, such as ``+1.20 [+0.40, +2.10] points``."""
    return f"{_points(delta.delta)} [{_points(delta.low)}, {_points(delta.high)}] points"


def _result(
    rule: PromotionRule, reason: str, value: float | None = None, *, passed: bool = False, skipped: bool = False
) -> RuleResult:
    return RuleResult(describe(rule), passed, value, rule.minimum, reason, skipped)


def _evaluate(rule: PromotionRule, deltas: Deltas) -> RuleResult:
    if rule.benchmark not in deltas:
        names = ", ".join(deltas) or "none"
        return _result(rule, f"the benchmark {rule.benchmark} was not measured (measured: {names})")
    scores = deltas[rule.benchmark].by_name()
    if rule.category not in scores:
        categories = ", ".join(deltas[rule.benchmark].categories) or "none"
        return _result(rule, f"{rule.benchmark} has no category {rule.category} (categories: {categories})")
    delta, lower = scores[rule.category], rule.bound == "lower"
    value = delta.low if lower else delta.delta
    if math.isnan(value):
        return _result(rule, f"the measured {'bound' if lower else 'delta'} is not a number")
    passed = value > rule.minimum if lower else value >= rule.minimum
    comparison = "not above" if lower else "below"
    failure = "" if passed else f"; {_points(value)} is {comparison} {_points(rule.minimum)}"
    return _result(rule, describe_delta(delta) + failure, value, passed=passed)


def _points(fraction: float) -> str:
    """Format ``0.0123`` as ``+1.23``, with enough digits to distinguish a value from a bound that it just missed."""
    text = f"{100 * fraction:+.2f}"
    return f"{100 * fraction:+.3g}" if float(text) == 0 and fraction != 0 else text
