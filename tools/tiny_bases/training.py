"""Learning-rate schedule, optimizer step, progress and resumable stages, shared by all recipes."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from reca.runtime.files import atomic_file
from reca.runtime.progress import Progress

Report = Callable[[int, int, str], None]
"""Called with (finished steps, all steps, losses as text)."""


def one_cycle(step: int, steps: int, peak: float, warmup: int = 50, floor: float = 0.02) -> float:
    """Linear warm-up, then a cosine from ``peak`` to ``floor * peak`` at the last step."""
    rise = min(1.0, (step + 1) / warmup)
    return peak * rise * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * step / steps)))


def update(optimizer: torch.optim.Optimizer, loss: Tensor, parameters: Sequence[Tensor], rate: float) -> None:
    """Take one clipped optimizer step at a learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()


def pixels(images: Tensor) -> Tensor:
    """Convert uint8 images to the models' range [-1, 1]."""
    return images.float() / 127.5 - 1


def run_stage(path: Path, name: str, modules: Mapping[str, nn.Module], train: Callable[[Report], None]) -> float:
    """Train a stage and save ``modules`` to ``path``, or load them if it finished before; return its seconds."""
    if path.is_file():
        saved = torch.load(path, weights_only=True)
        for key, module in modules.items():
            module.load_state_dict(saved[key])
        print(f"{name}: loaded from {path}")
        return float(saved["seconds"])
    print(f"{name}: starts")
    began, progress = time.monotonic(), Progress(0, "steps")

    def report(step: int, steps: int, text: str) -> None:
        nonlocal progress
        if steps != progress.total:  # a stage of several phases counts each phase's steps
            progress = Progress(steps, "steps")
        progress.update(step, f"{name}: {text}")

    train(report)
    seconds = time.monotonic() - began
    with atomic_file(path) as temporary:
        states = {key: module.state_dict() for key, module in modules.items()}
        torch.save({**states, "seconds": seconds}, temporary)
    return seconds
