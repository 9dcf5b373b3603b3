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
from reca.training.batches import MicroBatchLoader, split_micro_batches
from reca.training.loop import accumulate
from reca.training.optimizer import clip_gradients


def mean_loss(weight: nn.Parameter, part: list[tuple[float, int]]) -> Loss:
    """Samples (x, targets): a sample counts as often as it has targets, as answers of unequal length do."""
    targets = sum(count for _, count in part)
    total = sum(count * (weight * x).square().sum() for x, count in part)
    return Loss(total / targets, targets)


samples = st.lists(st.tuples(st.floats(-2, 2), st.integers(1, 9)), min_size=1, max_size=12)


@given(samples=samples, others=samples, size=st.integers(1, 12), share=st.floats(0.1, 2))
def test_any_size_gives_the_gradient_of_the_whole(samples, others, size: int, share: float) -> None:
    def gradient(size: int) -> tuple[torch.Tensor, float]:
        weight = nn.Parameter(torch.tensor([0.5, -1.5], dtype=torch.float64))
        accumulate([weight], [others], 0.3, lambda part: mean_loss(weight, part))
        parts = [one.ids for one in split_micro_batches("reconstruction", (), samples, size)]
        value = accumulate([weight], parts, share, lambda part: mean_loss(weight, part))
        assert weight.grad is not None
        return weight.grad, float(value)

    weight = nn.Parameter(torch.tensor([0.5, -1.5], dtype=torch.float64))
    expected = 0.3 * mean_loss(weight, others).value + share * mean_loss(weight, samples).value
    expected.backward()
    found, value = gradient(size)
    assert torch.allclose(found, weight.grad, rtol=1e-12, atol=1e-12)
    assert value == pytest.approx(float(mean_loss(weight, samples).value.detach()))


def test_parameters_that_a_kind_does_not_reach_keep_their_gradient() -> None:
    first, second = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    parts = [[(1.0, 1)], [(1.0, 1)]]
    accumulate([first, second], parts, 1.0, lambda part: mean_loss(first, part))
    accumulate([first, second], parts, 1.0, lambda part: mean_loss(second, part))
    assert float(first.grad) == float(second.grad) == 2.0


class Waits(TorchDispatchMode):
    """Notes who asks a tensor for a number, for which a CPU must wait until the device has come so far."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("parts", [[[(1.0, 1), (2.0, 2)]], [[(1.0, 1)], [(2.0, 2)]]], ids=["one pass", "two"])
def test_nobody_waits_for_a_loss_or_a_norm(parts: list[list[tuple[float, int]]]) -> None:
    weight = nn.Parameter(torch.tensor([0.5, -1.5]))
    with Waits() as waits:
        value = accumulate([weight], parts, 0.5, lambda part: mean_loss(weight, part))
        norm = clip_gradients([weight], 1.0)
    assert waits.count == 0
    with Waits() as waits:
        assert float(value) == pytest.approx(7.5)
        assert float(norm) > 1
    assert waits.count == 2


@given(count=st.integers(1, 20), size=st.integers(1, 6), processes=st.integers(1, 5))
def test_sharded_processes_make_equally_many_passes_over_all_samples(count: int, size: int, processes: int) -> None:
    ids = [str(number) for number in range(count)]
    kind, moment = "reconstruction", ("train", 1)
    made = [
        split_micro_batches(kind, moment, ids, size, DistributedContext(rank, processes, sharded=True))
        for rank in range(processes)
    ]
    assert len({len(own) for own in made}) == 1
    assert all(1 <= len(one.ids) <= size for own in made for one in own)
    assert sorted(name for own in made for one in own if one.counts for name in one.ids) == sorted(ids)
    for rank, own in enumerate(made):
        assert [one for one in own if one.counts] == split_micro_batches(
            kind, moment, ids, size, DistributedContext(rank, processes)
        )


class Told:
    """Samples that are numbers, and a note of who read them when."""

    held_out_kinds, held_out = ("reconstruction",), ["h1", "h2", "h3"]

    def __init__(self) -> None:
        self.read_by: list[tuple[tuple[object, ...], int]] = []

    def step(self, step: int) -> dict[str, list[str]]:
        return {"reconstruction": [f"{step}a", f"{step}b", f"{step}c"], "understanding": [f"{step}q"]}

    def read(self, kind: str, ids: list[str], moment: tuple[object, ...]) -> tuple[object, ...]:
        self.read_by.append(((kind, *ids), threading.get_ident()))
        return kind, *ids, moment

    def loss(self, kind: str, sources: tuple[object, ...]) -> Loss:
        return Loss(sources, 1)  # type: ignore[arg-type]


def walk(ahead: int, last: int = 4) -> tuple[list[object], Told]:
    samples = Told()
    made = MicroBatchLoader(samples, 2, SINGLE_PROCESS, range(1, last + 1), ahead)  # type: ignore[arg-type]
    found: list[object] = []
    for step in range(1, last + 1):
        found += [made.loss(one).value for parts in made.step(step).values() for one in parts]
        if step % 2 == 0:
            found += [made.loss(one).value for parts in made.held_out().values() for one in parts]
    made.close()
    return found, samples


@pytest.mark.parametrize("ahead", [1, 2, 50])
def test_what_is_read_ahead_is_what_would_have_been_read(ahead: int) -> None:
    expected, here = walk(0)
    found, samples = walk(ahead)
    assert found == expected
    assert sorted(map(repr, (what for what, _ in samples.read_by))) == sorted(
        map(repr, (what for what, _ in here.read_by))
    )  # all of it, and nothing beyond the last step
    assert {thread for _, thread in here.read_by} == {threading.get_ident()}
    assert threading.get_ident() not in {thread for _, thread in samples.read_by}


def test_what_goes_wrong_in_reading_ahead_is_told_where_it_is_due() -> None:
    class Broken(Told):
        def read(self, kind: str, ids: list[str], moment: tuple[object, ...]) -> tuple[object, ...]:
            if "2a" in ids:
                raise UserError("shard 7 is damaged")
            return super().read(kind, ids, moment)

    made = MicroBatchLoader(Broken(), 2, SINGLE_PROCESS, range(1, 4), 3)  # type: ignore[arg-type]
    for one in (one for parts in made.step(1).values() for one in parts):
        made.loss(one)
    with pytest.raises(UserError, match="shard 7"):
        made.loss(made.step(2)["reconstruction"][0])
    made.close()
