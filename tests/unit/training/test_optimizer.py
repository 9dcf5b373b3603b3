"""Weight decay and freezing."""

import pytest
import torch
from torch import nn

from reca.training.optimizer import build_optimizer, freeze, set_training_mode
from reca.training.step import set_learning_rate


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
