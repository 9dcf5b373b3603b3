"""Bootstrap intervals: right coverage, exact symmetries, plain errors."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reca.evaluation import statistics
from reca.evaluation.statistics import OVERALL, intervals, means, paired_delta

fractions = st.floats(0, 1, allow_nan=False, width=32)
prompts = st.dictionaries(
    st.text("abcdef", min_size=1, max_size=4), st.lists(fractions, min_size=1, max_size=4), min_size=1, max_size=6
)
scores = st.dictionaries(st.sampled_from(["counting", "colors", "position"]), prompts, min_size=1)


def shuffled(values: statistics.Values, seed: int) -> statistics.Values:
    rng = np.random.default_rng(seed)

    def reorder(mapping: dict) -> dict:
        keys = list(mapping)
        return {keys[i]: mapping[keys[i]] for i in rng.permutation(len(keys))}

    return reorder({category: reorder(dict(prompts)) for category, prompts in values.items()})


@given(scores, st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_order_does_not_matter(values: statistics.Values, seed: int) -> None:
    assert intervals(values, resamples=50) == intervals(shuffled(values, seed), resamples=50)


@given(scores)
@settings(max_examples=40, deadline=None)
def test_interval_holds_its_own_mean_and_stays_in_range(values: statistics.Values) -> None:
    for name, interval in intervals(values, resamples=200).items():
        assert -1e-9 <= interval.low <= interval.high <= 1 + 1e-9
        assert interval.value == pytest.approx(means(values)[name])


@given(scores, st.floats(-0.5, 0.5))
@settings(max_examples=40, deadline=None)
def test_a_constant_shift_is_found_with_no_uncertainty(values: statistics.Values, shift: float) -> None:
    shifted = {c: {p: [v + shift for v in images] for p, images in ps.items()} for c, ps in values.items()}
    for delta in paired_delta(values, shifted, resamples=50).by_name().values():
        assert [delta.delta, delta.low, delta.high] == pytest.approx([shift] * 3, abs=1e-9)


@given(scores, st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_swapping_the_models_flips_the_sign(values: statistics.Values, seed: int) -> None:
    rng = np.random.default_rng(seed)
    other = {c: {p: list(rng.random(len(images))) for p, images in ps.items()} for c, ps in values.items()}
    there = paired_delta(values, other, resamples=100).by_name()
    back = paired_delta(other, values, resamples=100).by_name()
    for name in there:
        assert there[name].delta == pytest.approx(-back[name].delta)
        assert (there[name].low, there[name].high) == pytest.approx((-back[name].high, -back[name].low), abs=1e-9)


def test_overall_is_the_mean_of_category_means_whatever_their_size() -> None:
    values = {"a": {"0": [1.0]}, "b": {str(i): [0.0, 0.0] for i in range(50)}}
    assert means(values)[OVERALL] == 0.5


def test_a_category_is_not_disturbed_by_its_neighbours() -> None:
    rng = np.random.default_rng(0)
    a, b = ({str(i): list(rng.random(4)) for i in range(20)} for _ in range(2))
    assert intervals({"a": a})["a"] == intervals({"a": a, "b": b})["a"]


def test_images_of_one_prompt_are_drawn_together() -> None:
    # Ten equal images per prompt add no information: the interval must not shrink.
    rng = np.random.default_rng(1)
    outcome = {str(i): float(rng.random() < 0.5) for i in range(40)}
    single = intervals({"a": {p: [v] for p, v in outcome.items()}})["a"]
    ten = intervals({"a": {p: [v] * 10 for p, v in outcome.items()}})["a"]
    assert (single.low, single.high) == pytest.approx((ten.low, ten.high))
    assert single.high - single.low > 0.2


def test_pairing_removes_what_prompts_have_in_common() -> None:
    rng = np.random.default_rng(2)
    difficulty = rng.random(60)
    base = {"a": {str(i): [d] for i, d in enumerate(difficulty)}}
    aligned = {"a": {str(i): [d + 0.05 + 0.01 * rng.standard_normal()] for i, d in enumerate(difficulty)}}
    delta, unpaired = paired_delta(base, aligned).categories["a"], intervals(aligned)["a"]
    assert delta.low > 0
    assert (delta.high - delta.low) < 0.1 * (unpaired.high - unpaired.low)


def test_coverage_by_simulation() -> None:
    """95 % intervals hold the true difference in about 95 of 100 experiments (prompts vary, images vary)."""
    rng, experiments, prompts_each, images = np.random.default_rng(3), 200, 40, 4
    covered = 0
    for number in range(experiments):
        values: tuple[dict, dict] = ({}, {})
        for category, gain in (("a", 0.1), ("b", 0.0)):
            ability = rng.uniform(0.2, 0.7, prompts_each)
            for model, extra in zip(values, (0.0, gain), strict=True):
                hits = rng.random((prompts_each, images)) < (ability + extra)[:, None]
                model[category] = {str(i): list(row.astype(float)) for i, row in enumerate(hits)}
        delta = paired_delta(*values, resamples=400, seed=number).overall
        covered += delta.low <= 0.05 <= delta.high
    assert 0.9 <= covered / experiments <= 0.99


def test_a_prompt_without_values_keeps_its_place() -> None:
    base = {"a": {"0": [0.0], "1": [], "2": [1.0]}}
    aligned = {"a": {"0": [0.5], "1": [1.0], "2": [0.5]}}
    assert means(base)["a"] == 0.5
    assert paired_delta(base, aligned).categories["a"].delta == pytest.approx(2 / 3 - 0.5)


@pytest.mark.parametrize(
    ("base", "aligned", "message"),
    [
        ({"a": {"0": [1.0]}}, {"b": {"0": [1.0]}}, "different categories: a and b"),
        ({"a": {"0": [1.0]}}, {"a": {"1": [1.0]}}, "a: 2 prompts were measured once only, for instance '0'"),
        ({}, {}, "no category has values"),
        ({"a": {"0": []}}, {"a": {"0": []}}, "'a' has no values"),
    ],
)
def test_what_cannot_be_compared_is_refused(base: dict, aligned: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        paired_delta(base, aligned)
