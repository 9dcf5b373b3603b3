"""The sequential test: its error rate by simulation, the prompts it saves, and its exactness at the end."""

import random

import numpy as np
import pytest

from reca.evaluation.early_stopping import SequentialTest, decide, shuffle_prompts

ERROR_RATE = 0.05
RUNS = 1000


def overall(sizes, values):
    return np.mean([np.mean(values[name]) for name in sizes])


def population(kind: str, rng: np.random.Generator, sizes: dict[str, int], mean: float) -> dict[str, np.ndarray]:
    """Return differences per category whose overall mean is ``mean``, up to clipping."""
    if kind == "balanced":  # an equally good model: as many wins as losses
        values = {name: rng.choice([-1.0, 0.0, 0.0, 0.0, 1.0], n) for name, n in sizes.items()}
    elif kind == "skewed":  # many small losses, few great wins
        values = {name: np.where(rng.random(n) < 0.08, 0.9, -0.08) for name, n in sizes.items()}
    else:  # means of several images
        values = {name: rng.integers(-4, 5, n) / 4 * 0.6 for name, n in sizes.items()}
    shift = mean - overall(sizes, values)
    return {name: np.clip(array + shift, -1, 1) for name, array in values.items()}


SIZES = {"a": 80, "b": 99, "c": 40}


def run(values, minimum, seed):
    numbers = {name: [str(i) for i in range(len(array))] for name, array in values.items()}
    order = shuffle_prompts(numbers, seed)
    differences = ((name, float(values[name][int(i)])) for name, i in order)
    return decide(differences, {name: len(array) for name, array in values.items()}, minimum, ERROR_RATE)


@pytest.mark.parametrize("kind", ["balanced", "skewed", "images"])
@pytest.mark.parametrize("offset", [-0.001, 0.001])
def test_early_decisions_are_wrong_at_most_at_the_error_rate(kind, offset):
    """The hardest case: one population whose mean is close to the minimum, in many random orders."""
    values = population(kind, np.random.default_rng(1), SIZES, 0.0)
    minimum = overall(SIZES, values) + offset
    truth = "missed" if offset > 0 else "reached"
    outcomes = [run(values, minimum, seed) for seed in range(RUNS)]
    wrong = sum(outcome.decision != truth for outcome in outcomes) / RUNS
    assert wrong <= ERROR_RATE / 2 + 3 * (ERROR_RATE / 2 / RUNS) ** 0.5, "one side has half the error rate"


def test_clear_difference_saves_prompts():
    values = population("images", np.random.default_rng(2), SIZES, 0.25)
    outcomes = [run(values, 0.0, seed) for seed in range(100)]
    assert all(outcome.decision == "reached" for outcome in outcomes)
    assert np.median([outcome.num_measured for outcome in outcomes]) < sum(SIZES.values()) / 2


def test_clear_loss_is_decided_early():
    values = population("images", np.random.default_rng(3), SIZES, -0.25)
    outcomes = [run(values, 0.0, seed) for seed in range(50)]
    assert all(outcome.decision == "missed" and outcome.early for outcome in outcomes)


def test_measuring_stops_with_the_decision():
    numbers = []

    def measure():
        for number in range(400):
            numbers.append(number)
            yield "a", 0.5

    outcome = decide(measure(), {"a": 400}, 0.0, ERROR_RATE)
    assert outcome.decision == "reached"
    assert len(numbers) == outcome.num_measured < 60


@pytest.mark.parametrize("seed", range(20))
def test_decision_after_all_prompts_is_exact(seed):
    """With an error rate that allows no early decision, the complete measurement decides."""
    rng = random.Random(seed)
    values = [rng.choice([-1.0, 1.0]) for _ in range(6)]
    outcome = decide((("a", value) for value in values), {"a": 6}, 0.1, error_rate=1e-6)
    assert outcome.decision == ("reached" if sum(values) / 6 >= 0.1 else "missed")


def test_decision_that_the_rest_cannot_change_is_early():
    """After 51 of 100 losses the mean cannot reach 0, with any error rate."""
    outcome = decide((("a", -1.0) for _ in range(100)), {"a": 100}, 0.0, error_rate=1e-300)
    assert outcome.decision == "missed"
    assert outcome.num_measured <= 52


def test_categories_have_equal_weights():
    """A small category counts as much as a large one: -1 in 10 prompts and +0.5 in 90 is a loss."""
    values = {"a": np.full(10, -1.0), "b": np.full(90, 0.5)}
    assert run(values, 0.0, 0).decision == "missed"


def test_order_depends_on_the_seed_alone():
    categories = {"b": ["2", "1"], "a": ["3"]}
    assert shuffle_prompts(categories, 1) == shuffle_prompts({"a": ["3"], "b": ["1", "2"]}, 1)
    many = {"a": [str(i) for i in range(30)]}
    assert shuffle_prompts(many, 1) != shuffle_prompts(many, 2)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="no test of 0 values"):
        SequentialTest(0, 0, -1, 1, ERROR_RATE)
    test = SequentialTest(0, 1, -1, 1, ERROR_RATE)
    with pytest.raises(ValueError, match="2 is not from -1 to 1"):
        test.update(2)
    test.update(0.5)
    with pytest.raises(ValueError, match="there are only 1 values"):
        test.update(0.5)
    with pytest.raises(ValueError, match="every category needs prompts"):
        decide([], {"a": 0}, 0.0, ERROR_RATE)
    with pytest.raises(ValueError, match="ended after 1 of 3 prompts"):
        decide([("a", 0.1)], {"a": 3}, 0.0, ERROR_RATE)
