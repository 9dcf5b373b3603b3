"""Training loop of the long recipes: Muon for matrices, AdamW for the rest, averaged weights, exact resumption.

A step's randomness comes from its number alone, so a loop that was killed goes on from its last checkpoint as if it
had never stopped.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from reca.runtime.files import atomic_file
from tools.tiny_bases.training import one_cycle

MUON_RATE = 10.0
"""Muon's learning rate in units of AdamW's."""
MIN_SIDE = 9
"""Smallest side of a matrix for Muon; depthwise convolutions and gates are AdamW's."""
AVERAGING = 0.998
"""Decay of the moving average of the weights."""


class Muon(torch.optim.Optimizer):
    """Momentum orthogonalized by Newton-Schulz iterations (Jordan et al. 2024), in float32.

    Like ``torch.optim.Muon``, but it takes 1 x 1 convolutions as the matrices they are, and treats all matrices of
    one shape at once, which small ones need.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.01
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update all matrices that have a gradient."""
        for group in self.param_groups:
            alike: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    matrix, gradient = parameter.flatten(1), parameter.grad.flatten(1)
                    average = self.state[parameter].setdefault("momentum", torch.zeros_like(matrix))
                    average.lerp_(gradient, 1 - group["momentum"])
                    nesterov = gradient.lerp(average, group["momentum"])
                    alike.setdefault((matrix.shape[0], matrix.shape[1]), []).append((matrix, nesterov))
            for (rows, columns), pairs in alike.items():
                updates = orthogonalize(torch.stack([update for _, update in pairs])) * max(1, rows / columns) ** 0.5
                for (matrix, _), update in zip(pairs, updates, strict=True):
                    matrix.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=group["lr"])


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """Return matrices (N, r, c) with the same singular vectors and all singular values near 1."""
    x = matrices / (matrices.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    is_tall = x.shape[-2] > x.shape[-1]
    x = x.mT if is_tall else x
    for _ in range(steps):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.mT if is_tall else x


class Optimizers:
    """Muon for the inner matrices, AdamW for everything else, at one learning rate.

    Args:
        parameters: Names and parameters.
        is_inner: Which of them Muon may train, if they are matrices: not embeddings and heads.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], is_inner: Callable[[str], bool]) -> None:
        self.parameters = list(parameters.values())
        matrices = [value for name, value in parameters.items() if is_inner(name) and _is_matrix(value)]
        chosen = {id(value) for value in matrices}
        rest = [value for value in self.parameters if id(value) not in chosen]
        self.parts: list[tuple[torch.optim.Optimizer, float]] = []
        if rest:
            self.parts.append((torch.optim.AdamW(rest, betas=(0.9, 0.98), weight_decay=0.01), 1.0))
        if matrices:
            self.parts.append((Muon(matrices, lr=0.0), MUON_RATE))

    def update(self, loss: Tensor, rate: float) -> None:
        """Take one clipped step."""
        for optimizer, factor in self.parts:
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
            optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for optimizer, _ in self.parts:
            optimizer.step()

    def state_dict(self) -> list[Any]:
        """Return the states of both."""
        return [optimizer.state_dict() for optimizer, _ in self.parts]

    def load_state_dict(self, states: Sequence[Any]) -> None:
        """Load what :meth:`state_dict` returned."""
        for (optimizer, _), state in zip(self.parts, states, strict=True):
            optimizer.load_state_dict(state)


def _is_matrix(parameter: Tensor) -> bool:
    """Whether a parameter is the matrix of a linear layer or of a 1 x 1 convolution."""
    sides = parameter.shape[:2]
    return len(sides) == 2 and parameter.numel() == sides[0] * sides[1] and min(sides) >= MIN_SIDE


def optimize(
    path: Path,
    parameters: Mapping[str, nn.Parameter],
    loss_at: Callable[[int], tuple[Tensor, str]],
    *,
    steps: int,
    rate: float,
    is_inner: Callable[[str], bool] = lambda name: False,
    evaluate: Callable[[], str] | None = None,
    evaluate_every: int = 1000,
    save_every: int = 100,
) -> float:
    """Train parameters in place and leave them at their moving average; return the CPU seconds.

    Args:
        path: Checkpoint to resume from, written every ``save_every`` steps; a finished one is only loaded.
        parameters: Names and parameters to train.
        loss_at: Returns a step's loss, and a text for the log.
        steps: Steps of the one-cycle schedule.
        rate: AdamW's peak learning rate; Muon's is ``MUON_RATE`` times it.
        is_inner: See :class:`Optimizers`.
        evaluate: Returns the scores of the averaged weights, for the log.
        evaluate_every: Steps between two evaluations, which do not count as CPU seconds.
        save_every: Steps between two checkpoints and lines of the log.
    """
    optimizers = Optimizers(parameters, is_inner)
    averages = {name: value.detach().clone() for name, value in parameters.items()}
    start, seconds, paused = 0, 0.0, 0.0
    if path.is_file():
        saved = torch.load(path, weights_only=True)
        start, seconds, averages = saved["step"], saved["seconds"], saved["averages"]
        _assign(parameters, saved["parameters"])
        optimizers.load_state_dict(saved["optimizers"])
    began = time.process_time() - seconds
    for step in range(start, steps):
        loss, text = loss_at(step)
        optimizers.update(loss, one_cycle(step, steps, rate))
        for name, value in parameters.items():
            averages[name].lerp_(value.detach(), 1 - min(AVERAGING, (step + 1) / (step + 10)))
        if (step + 1) % save_every == 0 or step + 1 == steps:
            seconds = time.process_time() - began - paused
            print(f"{path.stem} {step + 1}/{steps}, {seconds:.0f} CPU s: {text}", flush=True)
            state: dict[str, Any] = {"parameters": {name: value.detach() for name, value in parameters.items()}}
            state |= {"averages": averages, "optimizers": optimizers.state_dict(), "step": step + 1, "seconds": seconds}
            with atomic_file(path) as temporary:
                torch.save(state, temporary)
        if evaluate is not None and (step + 1) % evaluate_every == 0:
            pause = time.process_time()
            current = {name: value.detach().clone() for name, value in parameters.items()}
            _assign(parameters, averages)
            print(f"{path.stem} {step + 1}/{steps}: {evaluate()}", flush=True)
            _assign(parameters, current)
            paused += time.process_time() - pause
    _assign(parameters, averages)
    return seconds


@torch.no_grad()
def _assign(parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
    for name, parameter in parameters.items():
        parameter.copy_(values[name])
