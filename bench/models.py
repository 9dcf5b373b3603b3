"""Models of every family with random weights at the sizes of :mod:`bench.sizes`."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from bench.sizes import OPTIONS, SIZES
from reca.models.base import UnifiedModel
from tools.memory import build as published


def build(family: str, size: str, device: torch.device, layers: int | None = None) -> UnifiedModel:
    """Build a model with random float32 weights, in evaluation mode; seed torch's generator first.

    Args:
        family: One of :data:`bench.sizes.FAMILIES`.
        size: "tiny", "middle" or "real".
        device: Device of the weights; billions of random numbers take minutes on a CPU.
        layers: Number of layers of BAGEL's or Janus' language model, in place of the size's.

    Raises:
        ImportError: A package that the family's classes need is missing.
    """
    numbers = SIZES[family][size]
    options = {**OPTIONS, **numbers.get("options", {})}
    if layers is not None:
        numbers = {**numbers, "text": {**numbers["text"], "num_hidden_layers": layers}}
    model = published.build(family, numbers, options, device)
    _fill_zero_weights(model)
    return model.to(device)


@torch.no_grad()
def _fill_zero_weights(model: nn.Module) -> None:
    """Add noise to zero-initialised weights, through which no gradient would flow."""
    for name, parameter in model.named_parameters():
        if name.endswith("weight") and not parameter.is_meta and not bool(parameter.any()):
            parameter.normal_(std=0.02)


@contextmanager
def full_float32() -> Iterator[None]:
    """Disable TF32, which convolutions on a GPU use by default."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
