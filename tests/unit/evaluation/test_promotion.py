"""Promotion rules as a function of numbers."""

import json
import math
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reca.config import Config, PromotionRule
from reca.evaluation.promotion import Champion, PromotionDecision, evaluate_champion_rules, evaluate_rules
from reca.evaluation.statistics import BenchmarkDelta, Delta

BENCHMARKS = ("scenes", "understanding", "fidelity")
CATEGORIES = ("overall", "position", "counting")
numbers = st.floats(-1, 1)


def rule(**changes: Any) -> PromotionRule:
    values = {"benchmark": "scenes", "category": "overall", "versus": "base", "bound": "lower", "minimum": 0.0}
    return PromotionRule.model_validate({**values, **changes})


def decide(rules: list[PromotionRule], deltas: Any, champion: Champion | None = None) -> PromotionDecision:
    """Evaluate the rules as report and register do, one after the other."""
    return evaluate_champion_rules(evaluate_rules(rules, deltas, "later"), rules, champion, "no champion")


@st.composite
def one_delta(draw: st.DrawFn) -> Delta:
    low, delta, high = sorted([draw(numbers), draw(numbers), draw(numbers)])
    return Delta(draw(numbers), draw(numbers), delta, low, high)


@st.composite
def all_deltas(draw: st.DrawFn) -> dict[str, BenchmarkDelta]:
    names = draw(st.sets(st.sampled_from(BENCHMARKS)))
    return {
        name: BenchmarkDelta(draw(one_delta()), {c: draw(one_delta()) for c in CATEGORIES[1:]})
        for name in sorted(names)
    }


rules = st.lists(
    st.builds(
        rule,
        benchmark=st.sampled_from(BENCHMARKS),
        category=st.sampled_from((*CATEGORIES, "absent")),
        versus=st.sampled_from(("base", "champion")),
        bound=st.sampled_from(("lower", "estimate")),
        minimum=numbers,
    ),
    min_size=1,
    max_size=5,
)
champions = st.one_of(
    st.none(),
    st.builds(Champion, st.just("3"), all_deltas()),
    st.just(Champion("3", None, "other prompts")),
)


@settings(max_examples=40, deadline=None)
@given(rules, all_deltas(), champions)
def test_decision_passes_exactly_if_no_rule_failed(rules: list[PromotionRule], deltas: Any, champion: Any) -> None:
    decision = decide(rules, deltas, champion)
    assert len(decision.rules) == len(rules)
    assert decision.passed == all(result.passed or result.skipped for result in decision.rules)
    assert decision.passed == (not decision.reasons)
    assert all(result.text and result.reason for result in decision.rules)
    text = json.dumps(decision.to_dict(), allow_nan=False)
    assert PromotionDecision.from_dict(json.loads(text)) == decision


@settings(max_examples=40, deadline=None)
@given(rules, all_deltas(), champions)
def test_champion_rules_are_skipped_only_without_champion(
    rules: list[PromotionRule], deltas: Any, champion: Any
) -> None:
    for rule, result in zip(rules, decide(rules, deltas, champion).rules, strict=True):
        assert result.skipped == (rule.versus == "champion" and champion is None)


@settings(max_examples=40, deadline=None)
@given(rules, all_deltas(), champions)
def test_rule_passes_exactly_if_its_measured_value_reaches_the_minimum(
    rules: list[PromotionRule], deltas: Any, champion: Any
) -> None:
    for rule, result in zip(rules, decide(rules, deltas, champion).rules, strict=True):
        compared = deltas if rule.versus == "base" else (champion.deltas if champion else None)
        benchmark = (compared or {}).get(rule.benchmark)
        delta = benchmark.by_name().get(rule.category) if benchmark else None
        above = delta is not None and delta.low > rule.minimum
        expected = above if rule.bound == "lower" else delta is not None and delta.delta >= rule.minimum
        assert result.passed == expected
        assert (result.value is not None) == (delta is not None)


@settings(max_examples=40, deadline=None)
@given(rules, all_deltas(), champions)
def test_results_against_the_base_do_not_depend_on_the_champion(
    rules: list[PromotionRule], deltas: Any, champion: Any
) -> None:
    report = evaluate_rules(rules, deltas, "later")
    for rule, before, after in zip(rules, report.rules, decide(rules, deltas, champion).rules, strict=True):
        assert rule.versus == "champion" or before == after


@settings(max_examples=40, deadline=None)
@given(rules, all_deltas(), st.sampled_from(BENCHMARKS))
def test_measuring_less_never_helps(rules: list[PromotionRule], deltas: Any, unmeasured: str) -> None:
    fewer = {name: scores for name, scores in deltas.items() if name != unmeasured}
    base_rules = [rule for rule in rules if rule.versus == "base"]
    assert decide(base_rules, deltas).passed or not decide(base_rules, fewer).passed


@settings(max_examples=40, deadline=None)
@given(rules, all_deltas(), champions, st.floats(0, 1))
def test_stricter_rules_never_let_more_models_pass(
    rules: list[PromotionRule], deltas: Any, champion: Any, by: float
) -> None:
    stricter = [rule.model_copy(update={"minimum": rule.minimum + by}) for rule in rules]
    assert decide(rules, deltas, champion).passed or not decide(stricter, deltas, champion).passed


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"benchmark": "fidelity"}, r"fidelity was not measured \(measured: scenes\)"),
        ({"category": "texture"}, r"no category texture \(categories: position\)"),
        ({"category": "position"}, "not a number"),
        ({"versus": "champion"}, "not comparable with champion version 3: other prompts"),
        ({"minimum": 0.02}, r"\+3.00 \[\+1.00, \+5.00\] points; \+1.00 is not above \+2.00"),
    ],
)
def test_failed_rule_gives_its_reason(changes: dict[str, Any], words: str) -> None:
    nan = Delta(0.5, 0.5, math.nan, math.nan, math.nan)
    deltas = {"scenes": BenchmarkDelta(Delta(0.5, 0.53, 0.03, 0.01, 0.05), {"position": nan})}
    decision = decide([rule(**changes)], deltas, Champion("3", None, "other prompts"))
    assert not decision.passed
    assert re.search(words, decision.reasons[0])


def test_near_miss_is_printed_differently_from_its_bound() -> None:
    deltas = {"scenes": BenchmarkDelta(Delta(0.5, 0.51, 0.01, -0.00001, 0.02), {})}
    (reason,) = decide([rule()], deltas).reasons
    assert "-0.001 is not above +0.00" in reason


def test_model_that_equals_its_base_has_shown_no_gain() -> None:
    deltas = {"scenes": BenchmarkDelta(Delta(0.5, 0.5, 0.0, 0.0, 0.0), {})}
    assert not decide([rule()], deltas).passed
    assert decide([rule(bound="estimate")], deltas).passed  # not worse, which is all that this rule asks


def test_first_model_is_compared_with_its_base_alone() -> None:
    rules = Config.load().register_.promotion_rules
    deltas = {name: BenchmarkDelta(Delta(0.5, 0.6, 0.1, 0.05, 0.15), {}) for name in BENCHMARKS}
    decision = decide(rules, deltas)
    assert decision.passed
    assert [result.reason for result in decision.rules if result.skipped] == ["no champion"]
