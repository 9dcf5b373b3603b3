"""Models of every family with random weights at the sizes of :mod:`bench.sizes`; nothing is loaded or fetched."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from bench.sizes import OPTIONS, SIZES
from reca.models.base import UnifiedModel
from tools.memory import build as published


def build(family: str, size: str, device: torch.device, layers: int | None = None) -> UnifiedModel:
    """A model with random float32 weights, in evaluation mode; seed torch's generator first.

    Args:
        family: One of :data:`bench.sizes.FAMILIES`.
        size: "tiny", "middle" or "real".
        device: Where it is built, too: billions of random numbers take minutes on a CPU.
        layers: Of the language model of BAGEL or Janus, in place of its own number.

    Raises:
        ImportError: A package is missing that the family's classes need.
    """
    numbers = SIZES[family][size]
    options = {**OPTIONS, **numbers.get("options", {})}
    if layers is not None:
        numbers = {**numbers, "text": {**numbers["text"], "num_hidden_layers": layers}}
    model = published.build(family, numbers, options, device)
    _move_zeros(model)
    return model.to(device)


@torch.no_grad()
def _move_zeros(model: nn.Module) -> None:
    """Last layers that start at zero would let no gradient through: a little noise for all that is zero."""
    for name, parameter in model.named_parameters():
        if name.endswith("weight") and not parameter.is_meta and not bool(parameter.any()):
            parameter.normal_(std=0.02)


@contextmanager
def full_float32() -> Iterator[None]:
    """No TF32 on a GPU, where convolutions use it unless told not to."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
