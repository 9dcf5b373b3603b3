"""Training loop of the long recipes: Muon, and resumption that leaves no trace."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tools.tiny_bases.optimization import Muon, Optimizers, optimize, orthogonalize


def small_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 16), nn.GELU(), nn.Linear(16, 12))


def loss_of(network: nn.Module, step: int) -> tuple[Tensor, str]:
    inputs = torch.randn(8, 12, generator=torch.Generator().manual_seed(step))
    loss = (network(inputs) - inputs.roll(1, 1)).pow(2).mean()
    return loss, f"{loss.item():.3f}"


@pytest.mark.parametrize("shape", [(16, 40), (40, 16), (16, 16)])
def test_orthogonalized_matrices_keep_their_singular_vectors(shape: tuple[int, int]) -> None:
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    u, values, v = torch.linalg.svd(matrices, full_matrices=False)
    rotated = u.mT @ orthogonalize(matrices) @ v.mT
    singular = rotated.diagonal(dim1=-2, dim2=-1)
    assert float((rotated - torch.diag_embed(singular)).abs().max()) < 1e-4
    clear = values > 0.1 * values[:, :1]
    assert 0.6 < float(singular[clear].min()) <= float(singular[clear].max()) < 1.3


def test_muon_steps_like_torchs() -> None:
    ours, theirs = small_network(), small_network()
    pairs = [(ours[0], theirs[0]), (ours[2], theirs[2])]
    optimizers = [
        Muon([layer.weight for layer, _ in pairs], lr=0.02),
        torch.optim.Muon([layer.weight for _, layer in pairs], lr=0.02, weight_decay=0.01, momentum=0.95),
    ]
    for step in range(5):
        for network, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            loss_of(network, step)[0].backward()
            optimizer.step()
    for layer, other in pairs:
        moved = (layer.weight - small_network()[0].weight).norm() if layer is ours[0] else None
        assert moved is None or float(moved) > 0.1
        assert float((layer.weight - other.weight).norm() / other.weight.norm()) < 0.02  # theirs rounds to bfloat16


def test_muon_takes_inner_matrices_and_pointwise_convolutions_only() -> None:
    parameters = {
        "inner.linear": nn.Parameter(torch.zeros(16, 12)),
        "inner.pointwise": nn.Parameter(torch.zeros(16, 12, 1, 1)),
        "inner.depthwise": nn.Parameter(torch.zeros(16, 1, 3, 3)),
        "inner.gates": nn.Parameter(torch.zeros(6, 16)),
        "inner.bias": nn.Parameter(torch.zeros(16)),
        "head": nn.Parameter(torch.zeros(16, 12)),
    }
    (adamw, _), (muon, _) = Optimizers(parameters, lambda name: name.startswith("inner.")).parts
    chosen = [id(value) for group in muon.param_groups for value in group["params"]]
    assert chosen == [id(parameters[name]) for name in ("inner.linear", "inner.pointwise")]
    assert sum(len(group["params"]) for group in adamw.param_groups) == 4


def test_a_stopped_loop_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    def run(path: Path, stop: int | None) -> dict[str, Tensor]:
        network = small_network()

        def loss_at(step: int) -> tuple[Tensor, str]:
            if step == stop:
                raise Stopped
            return loss_of(network, step)

        parameters = dict(network.named_parameters())
        options = {"steps": 12, "rate": 2e-3, "is_inner": lambda name: name.startswith("0."), "save_every": 4}
        try:
            optimize(path, parameters, loss_at, **options)
        except Stopped:
            return run(path, None)
        return {name: value.detach() for name, value in parameters.items()}

    whole, resumed = run(tmp_path / "whole.pt", None), run(tmp_path / "stopped.pt", 10)
    again = run(tmp_path / "whole.pt", 0)  # a finished loop is only loaded: no step is taken
    assert all(torch.equal(value, resumed[name]) and torch.equal(value, again[name]) for name, value in whole.items())
    assert not all(torch.equal(value, whole[name]) for name, value in small_network().named_parameters())


def test_evaluation_sees_the_average_and_leaves_training_alone(tmp_path: Path) -> None:
    seen: list[Tensor] = []

    def run(path: Path, watch: bool) -> Tensor:
        network = small_network()

        def evaluate() -> str:
            seen.append(network[0].weight.detach().clone())
            return ""

        parameters = dict(network.named_parameters())
        evaluation = evaluate if watch else None
        options = {"steps": 6, "rate": 2e-3, "evaluate": evaluation, "evaluate_every": 6}
        optimize(path, parameters, lambda step: loss_of(network, step), **options)
        return network[0].weight.detach()

    watched, unwatched = run(tmp_path / "a.pt", True), run(tmp_path / "b.pt", False)
    assert torch.equal(watched, unwatched)
    assert len(seen) == 1
    assert torch.equal(seen[0], watched)
