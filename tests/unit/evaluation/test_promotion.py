"""The gate, as a function of numbers."""

import json
import math
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reca.config import Config, PromotionRule
from reca.evaluation.promotion import Champion, evaluate_rules

BENCHMARKS = ("scenes", "understanding", "fidelity")
CATEGORIES = ("overall", "position", "counting")
numbers = st.floats(-1, 1)


def rule(**changes: Any) -> PromotionRule:
    values = {"benchmark": "scenes", "category": "overall", "versus": "base", "bound": "lower", "minimum": 0.0}
    return PromotionRule.model_validate({**values, **changes})


@st.composite
def one_delta(draw: st.DrawFn) -> dict[str, float]:
    low, delta, high = sorted([draw(numbers), draw(numbers), draw(numbers)])
    return {"base": draw(numbers), "aligned": draw(numbers), "delta": delta, "low": low, "high": high}


@st.composite
def all_deltas(draw: st.DrawFn) -> dict[str, Any]:
    measured = draw(st.sets(st.sampled_from(BENCHMARKS)))
    return {
        name: {"overall": draw(one_delta()), "categories": {c: draw(one_delta()) for c in CATEGORIES[1:]}}
        for name in sorted(measured)
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
def test_a_verdict_passes_exactly_when_no_rule_failed(gate: list[PromotionRule], deltas: Any, champion: Any) -> None:
    verdict = evaluate_rules(gate, deltas, champion)
    assert len(verdict.rules) == len(gate)
    assert verdict.passed == all(one.passed or one.skipped for one in verdict.rules)
    assert verdict.passed == (not verdict.reasons)
    assert all(one.text and one.reason for one in verdict.rules)
    json.dumps(verdict.to_dict(), allow_nan=False)


@settings(max_examples=40, deadline=None)
@given(rules, all_deltas(), champions)
def test_only_champion_rules_without_champion_are_skipped(
    gate: list[PromotionRule], deltas: Any, champion: Any
) -> None:
    for one, result in zip(gate, evaluate_rules(gate, deltas, champion).rules, strict=True):
        assert result.skipped == (one.versus == "champion" and champion is None)


@settings(max_examples=40, deadline=None)
@given(rules, all_deltas(), champions)
def test_a_passed_rule_has_a_measured_value_above_its_minimum(
    gate: list[PromotionRule], deltas: Any, champion: Any
) -> None:
    for one, result in zip(gate, evaluate_rules(gate, deltas, champion).rules, strict=True):
        measured = deltas if one.versus == "base" else (champion.deltas if champion else None)
        scores = (measured or {}).get(one.benchmark, {})
        delta = {"overall": scores.get("overall"), **scores.get("categories", {})}.get(one.category)
        above = delta is not None and delta["low"] > one.minimum
        expected = above if one.bound == "lower" else delta is not None and delta["delta"] >= one.minimum
        assert result.passed == expected
        assert (result.value is not None) == (delta is not None)


@settings(max_examples=40, deadline=None)
@given(rules, all_deltas(), st.sampled_from(BENCHMARKS))
def test_measuring_less_never_helps(gate: list[PromotionRule], deltas: Any, dropped: str) -> None:
    fewer = {name: scores for name, scores in deltas.items() if name != dropped}
    base_rules = [one for one in gate if one.versus == "base"]
    if evaluate_rules(base_rules, fewer).passed:
        assert evaluate_rules(base_rules, deltas).passed


@settings(max_examples=40, deadline=None)
@given(rules, all_deltas(), champions, st.floats(0, 1))
def test_a_stricter_gate_never_lets_more_through(
    gate: list[PromotionRule], deltas: Any, champion: Any, by: float
) -> None:
    stricter = [one.model_copy(update={"minimum": one.minimum + by}) for one in gate]
    assert evaluate_rules(gate, deltas, champion).passed or not evaluate_rules(stricter, deltas, champion).passed


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
def test_a_failed_rule_says_why(changes: dict[str, Any], words: str) -> None:
    deltas = {
        "scenes": {
            "overall": {"base": 0.5, "aligned": 0.53, "delta": 0.03, "low": 0.01, "high": 0.05},
            "categories": {"position": {"delta": math.nan, "low": math.nan, "high": math.nan}},
        }
    }
    verdict = evaluate_rules([rule(**changes)], deltas, Champion("3", None, "other prompts"))
    assert not verdict.passed
    assert re.search(words, verdict.reasons[0])


def test_a_near_miss_is_told_apart_from_its_bound() -> None:
    deltas = {"scenes": {"overall": {"delta": 0.01, "low": -0.00001, "high": 0.02}, "categories": {}}}
    (reason,) = evaluate_rules([rule()], deltas).reasons
    assert "-0.001 is not above +0.00" in reason


def test_a_model_that_is_its_base_has_shown_nothing() -> None:
    same = {"base": 0.5, "aligned": 0.5, "delta": 0.0, "low": 0.0, "high": 0.0}
    deltas = {"scenes": {"overall": same, "categories": {}}}
    assert not evaluate_rules([rule()], deltas).passed
    assert evaluate_rules([rule(bound="estimate")], deltas).passed  # not worse, if that is what was asked


def test_the_first_model_is_judged_against_its_base_alone() -> None:
    gate = Config.load().register_.promotion_rules
    good = {"base": 0.5, "aligned": 0.6, "delta": 0.1, "low": 0.05, "high": 0.15}
    deltas = {name: {"overall": good, "categories": {}} for name in BENCHMARKS}
    verdict = evaluate_rules(gate, deltas, None, "there is no champion yet")
    assert verdict.passed
    assert [one.reason for one in verdict.rules if one.skipped] == ["there is no champion yet"]
