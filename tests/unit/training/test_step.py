"""Micro-batches change memory and speed, never the gradient; the learning rate by step."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from reca.models.base import Loss
from reca.training.loader import split_micro_batches
from reca.training.step import accumulate, clip_gradients, learning_rate


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
        accumulate(nn.Module(), [weight], [earlier], 0.3, lambda part: mean_loss(weight, part))
        parts = [micro_batch.ids for micro_batch in split_micro_batches("reconstruction", (), samples, size)]
        value = accumulate(nn.Module(), [weight], parts, share, lambda part: mean_loss(weight, part))
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
    accumulate(nn.Module(), [first, second], parts, 1.0, lambda part: mean_loss(first, part))
    accumulate(nn.Module(), [first, second], parts, 1.0, lambda part: mean_loss(second, part))
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
        value = accumulate(nn.Module(), [weight], parts, 0.5, lambda part: mean_loss(weight, part))
        norm = clip_gradients([weight], 1.0)
    assert syncs.count == 0
    with DeviceSyncs() as syncs:
        assert float(value) == pytest.approx(7.5)
        assert float(norm) > 1
    assert syncs.count == 2


STEPS = {"warmup": st.integers(0, 50), "rest": st.integers(1, 500)}


@given(**STEPS, peak=st.floats(1e-7, 1))
def test_cosine_from_peak_to_five_percent(warmup: int, rest: int, peak: float) -> None:
    last = warmup + rest
    rates = [learning_rate(step, peak, "cosine", warmup, last, 0.05) for step in range(max(warmup, 1), last + 1)]
    assert rates[-1] == pytest.approx(0.05 * peak)
    assert rates == sorted(rates, reverse=True)
    if warmup:
        assert rates[0] == peak
    middle = warmup + rest / 2
    if rest % 2 == 0:
        assert learning_rate(int(middle), peak, "cosine", warmup, last, 0.05) == pytest.approx(peak * 1.05 / 2)


@given(**STEPS, peak=st.floats(1e-7, 1))
def test_warm_up_is_linear_and_constant_is_constant(warmup: int, rest: int, peak: float) -> None:
    for step in range(1, warmup + rest + 1):
        expected = peak * min(1.0, step / warmup) if warmup else peak
        assert learning_rate(step, peak, "constant", warmup, warmup + rest) == pytest.approx(expected)


def test_a_run_may_stop_before_its_cosine_ends() -> None:
    assert learning_rate(500, 1e-3, "cosine", 0, 1000, 0.05) == pytest.approx(1e-3 * 1.05 / 2)
    assert learning_rate(500, 1e-3, "cosine", 0, 500, 0.05) == pytest.approx(1e-3 * 0.05)


def test_all_warm_up() -> None:
    assert learning_rate(10, 1e-3, "cosine", 10, 10) == 1e-3
