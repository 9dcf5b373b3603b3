"""Faster kernels, the same function: compiled blocks, and attention by blocks of tokens."""

import torch
from torch import nn

from reca.models.base import UnifiedModel
from reca.runtime.errors import UserError
from reca.training.activation_checkpointing import blocks


def compile_blocks(model: nn.Module, backend: str = "inductor") -> None:
    """Compile every block of the model's stacks, in place; names of parameters stay.

    Blocks, not the whole: layers of one kind share their code, so a stack is compiled once, and what lies between them
    (packing, masks) depends on the batch. Sums are taken in another order then: results agree but for rounding.

    Args:
        model: Its other parts stay as they are. To be called before :func:`checkpoint_blocks`, which then runs what is
            compiled twice.
        backend: torch.compile's.
    """
    for block in blocks(model):
        # The forward pass alone: hooks, such as those that gather sharded parameters, stay outside.
        block.forward = torch.compile(block.forward, backend=backend, dynamic=True)


def attend_by_blocks(model: UnifiedModel, device: torch.device) -> None:
    """Let a mixture of transformers attend with FlexAttention, which leaves out blocks of tokens nobody may see.

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
