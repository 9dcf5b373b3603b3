"""Micro-batches change memory and speed, never the gradient."""

import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from reca.models.base import Loss
from reca.runtime.distributed import SINGLE_PROCESS, DistributedContext
from reca.runtime.errors import UserError
from reca.training.loader import MicroBatchLoader, split_micro_batches
from reca.training.loop import accumulate
from reca.training.losses import Kind, TrainingBatch
from reca.training.optimizer import clip_gradients


def mean_loss(weight: nn.Parameter, part: list[tuple[float, int]]) -> Loss:
    """Return the mean over the targets of samples (x, number of targets), like answers of unequal length."""
    targets = sum(count for _, count in part)
    total = sum(count * (weight * x).square().sum() for x, count in part)
    return Loss(total / targets, targets)


samples = st.lists(st.tuples(st.floats(-2, 2), st.integers(1, 9)), min_size=1, max_size=12)


@given(samples=samples, earlier=samples, size=st.integers(1, 12), share=st.floats(0.1, 2))
def test_accumulated_gradient_is_that_of_the_whole_batch(samples, earlier, size: int, share: float) -> None:
    def gradient(size: int) -> tuple[torch.Tensor, float]:
        weight = nn.Parameter(torch.tensor([0.5, -1.5], dtype=torch.float64))
        accumulate([weight], [earlier], 0.3, lambda part: mean_loss(weight, part))
        parts = [micro_batch.ids for micro_batch in split_micro_batches("reconstruction", (), samples, size)]
        value = accumulate([weight], parts, share, lambda part: mean_loss(weight, part))
        assert weight.grad is not None
        return weight.grad, float(value)

    weight = nn.Parameter(torch.tensor([0.5, -1.5], dtype=torch.float64))
    expected = 0.3 * mean_loss(weight, earlier).value + share * mean_loss(weight, samples).value
    expected.backward()
    accumulated, value = gradient(size)
    assert torch.allclose(accumulated, weight.grad, rtol=1e-12, atol=1e-12)
    assert value == pytest.approx(float(mean_loss(weight, samples).value.detach()))


def test_accumulation_keeps_gradients_that_a_loss_does_not_reach() -> None:
    first, second = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    parts = [[(1.0, 1)], [(1.0, 1)]]
    accumulate([first, second], parts, 1.0, lambda part: mean_loss(first, part))
    accumulate([first, second], parts, 1.0, lambda part: mean_loss(second, part))
    assert float(first.grad) == float(second.grad) == 2.0


class DeviceSyncs(TorchDispatchMode):
    """Counts reads of a tensor's value by the CPU, which are device syncs on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("parts", [[[(1.0, 1), (2.0, 2)]], [[(1.0, 1)], [(2.0, 2)]]], ids=["one pass", "two"])
def test_accumulation_and_clipping_need_no_device_sync(parts: list[list[tuple[float, int]]]) -> None:
    weight = nn.Parameter(torch.tensor([0.5, -1.5]))
    with DeviceSyncs() as syncs:
        value = accumulate([weight], parts, 0.5, lambda part: mean_loss(weight, part))
        norm = clip_gradients([weight], 1.0)
    assert syncs.count == 0
    with DeviceSyncs() as syncs:
        assert float(value) == pytest.approx(7.5)
        assert float(norm) > 1
    assert syncs.count == 2


@given(count=st.integers(1, 20), size=st.integers(1, 6), world_size=st.integers(1, 5))
def test_sharded_ranks_have_equally_many_micro_batches(count: int, size: int, world_size: int) -> None:
    ids = [str(number) for number in range(count)]
    kind, noise_key = "reconstruction", ("train", 1)
    plans = [
        split_micro_batches(kind, noise_key, ids, size, DistributedContext(rank, world_size, sharded=True))
        for rank in range(world_size)
    ]
    assert len({len(plan) for plan in plans}) == 1
    assert all(1 <= len(micro_batch.ids) <= size for plan in plans for micro_batch in plan)
    real = [[micro_batch for micro_batch in plan if not micro_batch.is_padding] for plan in plans]
    assert sorted(name for plan in real for micro_batch in plan for name in micro_batch.ids) == sorted(ids)
    for rank, plan in enumerate(real):
        assert plan == split_micro_batches(kind, noise_key, ids, size, DistributedContext(rank, world_size))


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
