"""Storing frozen matrices in bfloat16 without changing any result.

Under bfloat16 autocast every matrix product and convolution rounds its weights, in every pass. A frozen weight that
no other operation reads can be stored rounded. If its values are bfloat16 already, as in many published checkpoints,
losses, gradients and the saved model are bit-equal.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from reca.models.base import UnifiedModel

PRODUCTS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""Layers whose weights autocast rounds; of a subclass (in ``nn.MultiheadAttention``) only the weight may be read."""


def bf16_safe_parameters(model: UnifiedModel) -> list[str]:
    """Return the names of frozen matrices that the losses read in matrix products only.

    Excluded are norms and embeddings, which compute in float32, with matrices that are tied to an embedding; biases,
    which DoRA subtracts; and the parameters of :meth:`UnifiedModel.encode_target`, which never runs under autocast.
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


def move_to(model: UnifiedModel, device: torch.device, bf16: Iterable[str] = ()) -> None:
    """Move a model that is not sharded to a device in place, tensor by tensor.

    Args:
        model: In the types of its files, or of training.
        device: The target device.
        bf16: Names of parameters that may be stored in bfloat16; all others become float32.
    """
    bf16_parameters = {model.get_parameter(name) for name in bf16}
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = to_storage_dtype(tensor.data.to(device), tensor in bf16_parameters)


def to_storage_dtype(values: Tensor, allow_bf16: bool) -> Tensor:
    """Convert floating-point values to float32, or to bfloat16 if allowed and exact; integers stay as they are."""
    if not values.is_floating_point():
        return values
    return values.bfloat16() if allow_bf16 and bfloat16_holds(values) else values.float()


def bfloat16_holds(values: Tensor) -> bool:
    """Return whether rounding the values to bfloat16 is exact."""
    return values.dtype == torch.bfloat16 or torch.equal(values.bfloat16().float(), values.float())
