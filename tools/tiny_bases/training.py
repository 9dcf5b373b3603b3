"""What all pre-training stages share: one schedule, one update, one way to report."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

Report = Callable[[int, int, str], None]
"""Called with (steps done, steps in all, a few words)."""


def one_cycle(step: int, steps: int, peak: float, warmup: int = 50, floor: float = 0.02) -> float:
    """Linear warm-up, then a cosine from ``peak`` to ``floor * peak`` at the last step."""
    rise = min(1.0, (step + 1) / warmup)
    return peak * rise * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * step / steps)))


def update(optimizer: torch.optim.Optimizer, loss: Tensor, parameters: Sequence[Tensor], rate: float) -> None:
    """One clipped optimizer step at a learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()


def pixels(images: Tensor) -> Tensor:
    """uint8 images as the models read them, in [-1, 1]."""
    return images.float() / 127.5 - 1
