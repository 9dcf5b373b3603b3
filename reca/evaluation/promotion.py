"""The gate: rules as data in ``conf/``, judged on measured deltas. Pure: numbers in, a verdict with reasons out.

A rule is passed, failed or skipped, and says why:

- *passed* when its delta is at least ``minimum``, or, with ``bound: lower``, when the whole interval lies above
  it (a model that draws just as its base does has shown nothing); what is not a number never passes.
- *failed* also when what it asks about was not measured: a shorter list of benchmarks must not win by itself.
- *skipped* only when it compares with the champion and there is none to compare with. The first model is thus
  judged against its base alone.
- *failed as "not comparable"* when the champion was measured on another benchmark set: the scores of unlike
  prompt sets say nothing about each other, so such a model is refused, not waved through.

The verdict passes when no rule failed. ``reca report`` judges without a champion; ``reca register`` judges
again with it, under the registry's lock.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from reca.config import PromotionRule

Delta = Mapping[str, float]
"""``{"base", "aligned", "delta", "low", "high"}`` of one score, as in ``outputs/report/deltas.json``."""
Deltas = Mapping[str, Mapping[str, Any]]
"""``{benchmark: {"overall": Delta, "categories": {name: Delta}}}``."""


@dataclass(frozen=True)
class Champion:
    """The version that a new one is compared with."""

    version: str
    deltas: Deltas | None
    """New minus champion, paired over the same prompts; ``None``: the two cannot be compared."""
    obstacle: str = ""
    """Why they cannot be compared."""


@dataclass(frozen=True)
class RuleResult:
    """What became of one rule."""

    text: str
    """The rule in words, such as ``scenes overall versus base: the change must be at least -2.00 points``."""
    passed: bool
    value: float | None
    """The number that was held against ``minimum``; ``None`` where there was none."""
    minimum: float
    reason: str
    skipped: bool = False


@dataclass(frozen=True)
class PromotionDecision:
    """Whether a model may become champion, and why."""

    passed: bool
    rules: tuple[RuleResult, ...]

    def to_dict(self) -> dict[str, Any]:
        """``{"passed": …, "rules": […]}``, the head of ``verdict.json``."""
        return {"passed": self.passed, "rules": [asdict(rule) for rule in self.rules]}

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it was refused: one line per failed rule; empty when it passed."""
        return tuple(f"{rule.text}: {rule.reason}" for rule in self.rules if not (rule.passed or rule.skipped))


def evaluate_rules(
    rules: Sequence[PromotionRule],
    deltas: Deltas,
    champion: Champion | None = None,
    no_champion: str = "no champion to compare with",
) -> PromotionDecision:
    """Hold every rule against the measured deltas.

    Args:
        rules: ``config.register_.promotion_rules``.
        deltas: Aligned minus base, per benchmark.
        champion: What ``versus: champion`` rules are judged on; ``None`` skips them.
        no_champion: The reason those rules give when they are skipped.
    """
    results = tuple(_judge_one(rule, deltas, champion, no_champion) for rule in rules)
    return PromotionDecision(all(result.passed or result.skipped for result in results), results)


def describe(rule: PromotionRule) -> str:
    """A rule in words; deltas are given in points, that is hundredths of the score's range."""
    bound = "the lower bound of the change must be above" if rule.bound == "lower" else "the change must be at least"
    return f"{rule.benchmark} {rule.category} versus {rule.versus}: {bound} {_points(rule.minimum)} points"


def _judge_one(rule: PromotionRule, deltas: Deltas, champion: Champion | None, no_champion: str) -> RuleResult:
    def result(passed: bool, value: float | None, reason: str, skipped: bool = False) -> RuleResult:
        return RuleResult(describe(rule), passed, value, rule.minimum, reason, skipped)

    measured = deltas
    if rule.versus == "champion":
        if champion is None:
            return result(False, None, no_champion, skipped=True)
        if champion.deltas is None:
            return result(False, None, f"not comparable with champion version {champion.version}: {champion.obstacle}")
        measured = champion.deltas
    delta, obstacle = _find(rule, measured)
    if delta is None:
        return result(False, None, obstacle)
    value = _number(delta.get("low" if rule.bound == "lower" else "delta"))
    if value is None or math.isnan(value):
        return result(False, None, f"the measured {'bound' if rule.bound == 'lower' else 'delta'} is not a number")
    passed = value > rule.minimum if rule.bound == "lower" else value >= rule.minimum
    return result(passed, value, _sentence(rule, delta, value, passed))


def _find(rule: PromotionRule, deltas: Deltas) -> tuple[Delta | None, str]:
    if rule.benchmark not in deltas:
        measured = ", ".join(deltas) or "none"
        return None, f"the benchmark {rule.benchmark} was not measured (measured: {measured})"
    scores = deltas[rule.benchmark]
    if rule.category == "overall":
        found = scores.get("overall")
        return found, "" if found else f"the benchmark {rule.benchmark} has no overall score"
    categories = scores.get("categories", {})
    if rule.category not in categories:
        known = ", ".join(categories) or "none"
        return None, f"{rule.benchmark} has no category {rule.category} (categories: {known})"
    return categories[rule.category], ""


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _sentence(rule: PromotionRule, delta: Delta, value: float, passed: bool) -> str:
    low, high = _number(delta.get("low")), _number(delta.get("high"))
    interval = f" [{_points(low)}, {_points(high)}]" if low is not None and high is not None else ""
    estimate = _number(delta.get("delta"))
    measured = f"{_points(estimate)}{interval} points" if estimate is not None else f"{_points(value)} points"
    missed = "not above" if rule.bound == "lower" else "below"
    return measured if passed else f"{measured}; {_points(value)} is {missed} {_points(rule.minimum)}"


def _points(fraction: float) -> str:
    """``0.0123`` as ``+1.23``; enough digits to tell a value from a bound that it just missed."""
    text = f"{100 * fraction:+.2f}"
    return f"{100 * fraction:+.3g}" if float(text) == 0 and fraction != 0 else text
