"""Faster kernels for the same function: torch.compile by block, and FlexAttention."""

import torch
from torch import nn

from reca.models.base import UnifiedModel
from reca.runtime.errors import UserError
from reca.training.activation_checkpointing import blocks


def compile_blocks(model: nn.Module, backend: str = "inductor") -> None:
    """Compile every block of the model's stacks in place; parameter names stay the same.

    Blocks instead of the model, because equal layers share their code, so a stack is compiled once, and the code
    between them (packing, masks) depends on the batch. Compiled sums have another order: results are equal up to
    rounding.

    Args:
        model: Must be compiled before :func:`checkpoint_blocks`, which then runs the compiled code twice.
        backend: Of torch.compile.
    """
    for block in blocks(model):
        # Only the forward method, so that hooks, such as those that gather sharded parameters, stay outside.
        block.forward = torch.compile(block.forward, backend=backend, dynamic=True)


def enable_flex_attention(model: UnifiedModel, device: torch.device) -> None:
    """Use FlexAttention, which skips blocks of tokens that the mask hides.

    Args:
        model: Changed in place.
        device: Where it will be trained.

    Raises:
        UserError: The model's attention is its library's own, or PyTorch could not train so on this device.
    """
    if device.type == "cpu":
        raise UserError("hardware.flex_attention=true needs a GPU: on the CPU PyTorch has no backward pass for it")
    if not model.enable_flex_attention():
        raise UserError(f"hardware.flex_attention=true does not apply to {model.family}: set it to false")
