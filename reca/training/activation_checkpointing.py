"""Activation checkpointing: less memory, more time, the same results."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def checkpoint_blocks(model: nn.Module) -> None:
    """Make every block of the model's stacks save only its input, and recompute the rest in the backward pass.

    Works in place; parameter names stay the same. Dropout inside a block is recomputed with the same random numbers.
    Passes without gradient are unchanged.
    """
    for block in blocks(model):
        # Not a wrapper module, which would rename parameters, nor transformers' switch, which half of the blocks lack.
        block.forward = partial(_recomputed, block.forward)


def blocks(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the members of the outermost module lists: the layers of every transformer and convolutional stack.

    A member without a forward method is searched for blocks; a single linear layer is not a block.
    """
    for child in model.children():
        if not isinstance(model, nn.ModuleList) or type(child).forward is nn.Module.forward:
            yield from blocks(child)
        elif next(child.children(), None) is not None:
            yield child


def _recomputed(forward: Any, *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)
