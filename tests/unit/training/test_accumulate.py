"""Micro-batches change memory and speed, never the gradient."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from reca.models.base import Loss
from reca.training.loop import accumulate, passes
from reca.training.process import World


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
        value = accumulate(
            [weight], [one.ids for one in passes(samples, size)], share, lambda part: mean_loss(weight, part)
        )
        assert weight.grad is not None
        return weight.grad, value

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


@given(count=st.integers(1, 20), size=st.integers(1, 6), processes=st.integers(1, 5))
def test_sharded_processes_make_equally_many_passes_over_all_samples(count: int, size: int, processes: int) -> None:
    ids = [str(number) for number in range(count)]
    made = [passes(ids, size, World(rank, processes, sharded=True)) for rank in range(processes)]
    assert len({len(own) for own in made}) == 1
    assert all(1 <= len(one.ids) <= size for own in made for one in own)
    assert sorted(name for own in made for one in own if one.counts for name in one.ids) == sorted(ids)
    for rank, own in enumerate(made):
        assert [one for one in own if one.counts] == passes(ids, size, World(rank, processes))
