"""The sequential gate: its error rate by simulation, what it saves, and that it is exact at the end."""

import random

import numpy as np
import pytest

from reca.evaluation.early_stopping import Outcome, SequentialGate, decide, order_of

ERROR_RATE = 0.05
RUNS = 1000


def final(sizes, values):
    return np.mean([np.mean(values[name]) for name in sizes])


def population(kind: str, rng: np.random.Generator, sizes: dict[str, int], mean: float) -> dict[str, np.ndarray]:
    """Differences per category whose overall mean is exactly ``mean`` where the kind allows."""
    if kind == "balanced":  # a model that is as good: wins and losses alike
        values = {name: rng.choice([-1.0, 0.0, 0.0, 0.0, 1.0], n) for name, n in sizes.items()}
    elif kind == "skewed":  # many small losses, few great wins
        values = {name: np.where(rng.random(n) < 0.08, 0.9, -0.08) for name, n in sizes.items()}
    else:  # of several images each, and unlike categories
        values = {name: rng.integers(-4, 5, n) / 4 * 0.6 for name, n in sizes.items()}
    shift = mean - final(sizes, values)
    return {name: np.clip(one + shift, -1, 1) for name, one in values.items()}


SIZES = {"a": 80, "b": 99, "c": 40}


def run(values, minimum, seed):
    numbers = {name: [str(i) for i in range(len(one))] for name, one in values.items()}
    order = order_of(numbers, seed)
    found = ((name, float(values[name][int(i)])) for name, i in order)
    return decide(found, {name: len(one) for name, one in values.items()}, minimum, ERROR_RATE, 4)


@pytest.mark.parametrize("kind", ["balanced", "skewed", "images"])
@pytest.mark.parametrize("offset", [-0.001, 0.001])
def test_early_decisions_are_wrong_no_more_often_than_promised(kind, offset):
    """At the hardest place, a hair from the minimum, over the random order alone: one population, many orders."""
    values = population(kind, np.random.default_rng(1), SIZES, 0.0)
    minimum = final(SIZES, values) + offset
    truth = "missed" if offset > 0 else "reached"
    outcomes = [run(values, minimum, seed) for seed in range(RUNS)]
    wrong = sum(outcome.decision != truth for outcome in outcomes) / RUNS
    assert wrong <= ERROR_RATE / 2 + 3 * (ERROR_RATE / 2 / RUNS) ** 0.5, "one side has half the error rate"


def test_a_clear_difference_saves_images():
    values = population("images", np.random.default_rng(2), SIZES, 0.25)
    outcomes = [run(values, 0.0, seed) for seed in range(100)]
    assert all(outcome.decision == "reached" for outcome in outcomes)
    assert np.median([outcome.measured for outcome in outcomes]) < sum(SIZES.values()) / 2
    one = outcomes[0]
    assert one.images_saved == 2 * 4 * (219 - one.measured)
    assert str(one).endswith("images of 1752 saved")


def test_a_clear_loss_is_seen_early_too():
    values = population("images", np.random.default_rng(3), SIZES, -0.25)
    outcomes = [run(values, 0.0, seed) for seed in range(50)]
    assert all(outcome.decision == "missed" and outcome.early for outcome in outcomes)


def test_it_stops_measuring():
    asked = []

    def measure():
        for number in range(400):
            asked.append(number)
            yield "a", 0.5

    outcome = decide(measure(), {"a": 400}, 0.0)
    assert outcome.decision == "reached"
    assert len(asked) == outcome.measured < 60


@pytest.mark.parametrize("seed", range(20))
def test_at_the_end_it_is_exact(seed):
    """Where nothing is settled early, the last value decides as the complete measurement does."""
    rng = random.Random(seed)
    values = [rng.choice([-1.0, 1.0]) for _ in range(6)]
    outcome = decide((("a", value) for value in values), {"a": 6}, 0.1, error_rate=1e-6)
    assert outcome.decision == ("reached" if sum(values) / 6 >= 0.1 else "missed")


def test_what_the_rest_cannot_mend_is_certain():
    """97 of 100 lost: the mean cannot reach 0 any more, whatever the error rate."""
    outcome = decide((("a", -1.0) for _ in range(100)), {"a": 100}, 0.0, error_rate=1e-300)
    assert outcome.decision == "missed"
    assert outcome.measured <= 52


def test_categories_weigh_the_same():
    """A small category counts as much as a large one: -1 in 10 prompts and +0.5 in 90 is a loss."""
    values = {"a": np.full(10, -1.0), "b": np.full(90, 0.5)}
    assert run(values, 0.0, 0).decision == "missed"


def test_the_order_depends_on_the_seed_alone():
    categories = {"b": ["2", "1"], "a": ["3"]}
    assert order_of(categories, 1) == order_of({"a": ["3"], "b": ["1", "2"]}, 1)
    many = {"a": [str(i) for i in range(30)]}
    assert order_of(many, 1) != order_of(many, 2)


def test_bad_arguments_are_told():
    with pytest.raises(ValueError, match="no test of 0 values"):
        SequentialGate(0, 0, -1, 1)
    gate = SequentialGate(0, 1, -1, 1)
    with pytest.raises(ValueError, match="2 is not from -1 to 1"):
        gate.see(2)
    gate.see(0.5)
    with pytest.raises(ValueError, match="all 1 values have been seen"):
        gate.see(0.5)
    with pytest.raises(ValueError, match="every category needs prompts"):
        decide([], {"a": 0}, 0.0)
    with pytest.raises(ValueError, match="ended after 1 of 3 prompts"):
        decide([("a", 0.1)], {"a": 3}, 0.0)
    assert Outcome("reached", True, 1, 2, 1).images_saved == 2
