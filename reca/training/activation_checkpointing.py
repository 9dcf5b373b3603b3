"""Activation checkpointing: memory for time, the same numbers."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def checkpoint_blocks(model: nn.Module) -> None:
    """Let every block of the model's stacks keep its input only, and compute the rest again in the backward pass.

    In place, names of parameters stay. What a block draws itself (dropout) is drawn alike the second time. Passes
    without gradient are not touched.
    """
    for block in blocks(model):
        # Not a wrapping module: that would rename the parameters. Not HF's own switch: half of the blocks are ours.
        block.forward = partial(_recomputed, block.forward)


def blocks(model: nn.Module) -> Iterator[nn.Module]:
    """The members of the outermost module lists: the layers of every transformer and convolutional stack.

    A member that only holds others and is never called itself is looked into; a lone linear layer is no block.
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
