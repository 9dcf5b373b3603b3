"""Frozen matrices in two bytes a number, where that changes no number.

Under bfloat16 autocast every matrix product and every convolution rounds its weights, in every pass. A frozen weight
that nothing else reads can as well be kept rounded. Where rounding it loses nothing, because the checkpoint's values
are bfloat16 as many published ones are, the losses, the gradients and the saved model are the same to the last bit.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from reca.models.base import UnifiedModel

PRODUCTS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""Layers whose weights autocast rounds; a subclass may be read from and not called (in ``nn.MultiheadAttention``)."""


def bf16_safe_parameters(model: UnifiedModel) -> list[str]:
    """Names of the frozen matrices that the losses read in matrix products alone.

    Left out are norms and embeddings, which compute in float32, so also what is tied to an embedding; biases, which
    DoRA subtracts; and what :meth:`UnifiedModel.encode_target` runs, which is never under autocast.
    """
    readers: dict[nn.Parameter, list[nn.Module]] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            readers.setdefault(parameter, []).append(module)
    return [
        name
        for name, parameter in model.named_parameters()
        if not parameter.requires_grad
        and parameter.ndim > 1
        and not name.startswith(model.encoder_prefixes["target"])
        and [type(module) in PRODUCTS for module in readers[parameter]] == [True]
    ]


def move_to(model: UnifiedModel, device: torch.device, rounded: Iterable[str] = ()) -> None:
    """Put a whole model on a device, in place, tensor by tensor.

    Args:
        model: As its files have it, or as it was trained.
        device: Where to.
        rounded: Names of parameters that may be kept in bfloat16; everything else becomes float32.
    """
    narrow = {model.get_parameter(name) for name in rounded}
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = stored(tensor.data.to(device), tensor in narrow)


def stored(values: Tensor, narrow: bool) -> Tensor:
    """Numbers in float32, or in bfloat16 if that is wanted and loses nothing; whole numbers as they are."""
    if not values.is_floating_point():
        return values
    return values.bfloat16() if narrow and bfloat16_holds(values) else values.float()


def bfloat16_holds(values: Tensor) -> bool:
    """Whether rounding these numbers to bfloat16 changes none."""
    return values.dtype == torch.bfloat16 or torch.equal(values.bfloat16().float(), values.float())
