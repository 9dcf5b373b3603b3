"""Learning rate by step, weight decay, freezing."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from reca.training.optimizer import build_optimizer, freeze, learning_rate, set_learning_rate, set_training_mode

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


def test_vectors_do_not_decay() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Embedding(3, 4))
    before = {name: value.detach().clone() for name, value in network.named_parameters()}
    optimizer = build_optimizer(dict(network.named_parameters()), (0.9, 0.95), 0.5)
    set_learning_rate(optimizer, 0.1)
    for value in network.parameters():
        value.grad = torch.zeros_like(value)
    optimizer.step()
    for name, value in network.named_parameters():
        expected = before[name] * (1 - 0.1 * 0.5) if value.ndim > 1 else before[name]
        assert torch.allclose(value, expected)


def test_freezing_is_real() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.Dropout()))
    trained = freeze(network, {"0.weight"})
    assert list(trained) == ["0.weight"]
    network(torch.ones(1, 4)).sum().backward()
    assert [name for name, value in network.named_parameters() if value.grad is not None] == ["0.weight"]
    optimizer = build_optimizer(trained, (0.9, 0.95), 0.0)
    optimizer.step()
    assert len(optimizer.state) == 1
    set_training_mode(network)
    assert network.training
    assert network[0].training
    assert not network[1].training
    assert not network[1][0].training


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="nonsense"):
        freeze(nn.Linear(1, 1), {"weight", "nonsense"})
    with pytest.raises(ValueError, match="trains no parameter"):
        freeze(nn.Linear(1, 1), set())
