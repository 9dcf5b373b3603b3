"""Order of samples, micro-batches of the ranks, reading ahead."""

import threading
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reca.runtime.distributed import SINGLE_PROCESS, DistributedContext
from reca.runtime.errors import UserError
from reca.training.loader import EpochSampler, MicroBatchLoader, split_micro_batches
from reca.training.losses import Kind, TrainingBatch

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
    first = sampler.step(1, 100)
    assert first != sampler.step(2, 100)
    assert first != EpochSampler(ids(100), 1, "images").step(1, 100)
    assert first != EpochSampler(ids(100), 0, "dialogues").step(1, 100)


def test_order_is_equal_on_every_machine() -> None:
    assert EpochSampler("abcdefgh", 0, "images").step(1, 8) == list("bcgdhafe")


def test_empty_or_repeated_ids_are_errors() -> None:
    with pytest.raises(ValueError, match="no samples"):
        EpochSampler([], 0, "images")
    with pytest.raises(ValueError, match="twice"):
        EpochSampler(["a", "a"], 0, "images")


@given(count=st.integers(1, 20), size=st.integers(1, 6), world_size=st.integers(1, 5))
def test_ranks_have_equally_many_micro_batches(count: int, size: int, world_size: int) -> None:
    ids = [str(number) for number in range(count)]
    kind, noise_key = "reconstruction", ("train", 1)
    plans = [
        split_micro_batches(kind, noise_key, ids, size, DistributedContext(rank, world_size))
        for rank in range(world_size)
    ]
    assert len({len(plan) for plan in plans}) == 1
    assert all(1 <= len(micro_batch.ids) <= size for plan in plans for micro_batch in plan)
    real = [[micro_batch for micro_batch in plan if not micro_batch.is_padding] for plan in plans]
    assert sorted(name for plan in real for micro_batch in plan for name in micro_batch.ids) == sorted(ids)
    assert world_size > 1 or plans == real


class NamedData:
    """Batches that carry their ids in place of images, and a record of the threads that read them."""

    held_out_kinds, held_out, device = ("reconstruction",), ["h1", "h2", "h3"], torch.device("cpu")

    def __init__(self) -> None:
        self.read_by: list[tuple[tuple[str, ...], int]] = []

    def step(self, step: int) -> dict[str, list[str]]:
        return {"reconstruction": [f"{step}a", f"{step}b", f"{step}c"], "understanding": [f"{step}q"]}

    def read(self, kind: Kind, ids: list[str], noise_key: tuple[object, ...]) -> TrainingBatch:
        self.read_by.append(((kind, *ids), threading.get_ident()))
        return TrainingBatch(kind, [], prompts=[*ids, str(noise_key)])


def load_all(prefetch: int, last_step: int = 4) -> tuple[list[TrainingBatch], NamedData]:
    data = NamedData()
    loader = MicroBatchLoader(data, 2, SINGLE_PROCESS, range(1, last_step + 1), prefetch)  # type: ignore[arg-type]
    loaded: list[TrainingBatch] = []
    for step in range(1, last_step + 1):
        loaded += [batch for batches in loader.step(step).values() for batch in batches]
        if step % 2 == 0:
            loaded += [batch for batches in loader.held_out().values() for batch in batches]
    loader.close()
    return loaded, data


@pytest.mark.parametrize("prefetch", [1, 2, 50])
def test_prefetched_batches_are_those_read_on_demand(prefetch: int) -> None:
    expected, on_demand = load_all(0)
    loaded, prefetched = load_all(prefetch)
    assert loaded == expected
    # All batches, and none beyond the last step.
    assert sorted(ids for ids, _ in prefetched.read_by) == sorted(ids for ids, _ in on_demand.read_by)
    assert {thread for _, thread in on_demand.read_by} == {threading.get_ident()}
    assert threading.get_ident() not in {thread for _, thread in prefetched.read_by}


def test_prefetching_error_is_raised_when_the_batch_is_loaded() -> None:
    class DamagedData(NamedData):
        def read(self, kind: Kind, ids: list[str], noise_key: tuple[object, ...]) -> TrainingBatch:
            if "2a" in ids:
                raise UserError("shard 7 is damaged")
            return super().read(kind, ids, noise_key)

    loader = MicroBatchLoader(DamagedData(), 2, SINGLE_PROCESS, range(1, 4), 3)  # type: ignore[arg-type]
    assert [len(list(batches)) for batches in loader.step(1).values()] == [2, 1]
    with pytest.raises(UserError, match="shard 7"):
        next(iter(loader.step(2)["reconstruction"]))
    loader.close()
