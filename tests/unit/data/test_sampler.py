"""The sampler as a pure function of (seed, stream, step)."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reca.data.sampler import EpochSampler

SIZES = {"n": st.integers(1, 40), "size": st.integers(1, 50), "seed": st.integers(0, 2**31)}


def ids(n: int) -> list[str]:
    return [f"{number:016x}" for number in range(n)]


@given(**SIZES, epochs=st.integers(1, 4))
def test_every_id_occurs_once_per_epoch(n: int, size: int, seed: int, epochs: int) -> None:
    sampler = EpochSampler(ids(n), seed, "images")
    steps = -(-epochs * n // size)
    stream = [name for step in range(1, steps + 1) for name in sampler.step(step, size)]
    for epoch in range(epochs):
        assert Counter(stream[epoch * n : (epoch + 1) * n]) == Counter(ids(n))


@given(**SIZES, step=st.integers(1, 200))
def test_steps_do_not_depend_on_earlier_calls(n: int, size: int, seed: int, step: int) -> None:
    walked = EpochSampler(ids(n), seed, "images")
    for earlier in range(1, step):
        walked.step(earlier, size)
    fresh = EpochSampler(reversed(ids(n)), seed, "images")
    assert walked.step(step, size) == fresh.step(step, size)


def test_order_depends_on_epoch_seed_and_stream() -> None:
    sampler = EpochSampler(ids(100), 0, "images")
    first = sampler.take(0, 100)
    assert first != sampler.take(100, 100)
    assert first != EpochSampler(ids(100), 1, "images").take(0, 100)
    assert first != EpochSampler(ids(100), 0, "dialogues").take(0, 100)


def test_order_is_equal_on_every_machine() -> None:
    assert EpochSampler("abcdefgh", 0, "images").take(0, 8) == list("bcgdhafe")


def test_empty_or_repeated_ids_are_errors() -> None:
    with pytest.raises(ValueError, match="no samples"):
        EpochSampler([], 0, "images")
    with pytest.raises(ValueError, match="twice"):
        EpochSampler(["a", "a"], 0, "images")
