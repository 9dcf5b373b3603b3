"""Dropout whose mask is a function of the sample, not of the batch, the process, the device or the call order.

torch draws one mask for a whole batch. Here a value is dropped where a hash of (sample, dropout layer, position) is
small, so no random state is used: activation checkpointing recomputes the same mask, and CPU and GPU agree.
"""

import torch
from torch import Tensor, nn

POSITION_STRIDE = -0x61C88647
"""Added per position before hashing: 2^32 divided by the golden ratio, as a signed 32-bit number."""
MURMUR_ROUNDS = ((16, -0x7A143595), (13, -0x3D4D51CB))
"""Shifts and factors of MurmurHash3's 32-bit finalizer, as signed numbers."""


class SampleDropout(nn.Module):
    """Set a share ``rate`` of the values to zero and divide the rest by 1 - ``rate``."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.layer_index = 0
        """Index among the network's dropout layers; see :func:`number_dropout_layers`."""

    def is_active(self, keys: Tensor | None) -> bool:
        """Return whether values are dropped: in training, if the samples have keys."""
        return self.training and self.rate > 0 and keys is not None

    def forward(self, values: Tensor, keys: Tensor | None) -> Tensor:
        """Drop from values (B, …) by sample keys (B,) int32; see :meth:`reca.runtime.seeding.SampleRng.keys`."""
        if keys is None or not self.is_active(keys):
            return values
        threshold = round(self.rate * 2**32) - 2**31
        drop_mask = position_hashes(keys + self.layer_index, values) < threshold
        return values.masked_fill(drop_mask, 0) / (1 - self.rate)


def number_dropout_layers(network: nn.Module) -> None:
    """Give each dropout layer of a network its own ``layer_index``, in module order."""
    layers = [module for module in network.modules() if isinstance(module, SampleDropout)]
    for index, layer in enumerate(layers):
        layer.layer_index = index


def position_hashes(keys: Tensor, like: Tensor) -> Tensor:
    """Hash each position of ``like`` (B, …) with its sample's key (B,) int32 to a uniform int32.

    The hash folds in one axis after another, so it depends on a position's indices and not on the sizes of the axes:
    padding changes no mask.
    """
    hashes = murmur_finalize_(keys.clone())
    for axis in range(1, like.ndim):
        offsets = torch.arange(like.shape[axis], dtype=torch.int32, device=like.device) * POSITION_STRIDE
        # Made from ``like``, so that a fake tensor gives a fake tensor (tools/memory).
        expanded = like.new_empty(like.shape[: axis + 1], dtype=torch.int32)
        hashes = murmur_finalize_(expanded.copy_(hashes[..., None]).add_(offsets))
    return hashes


def murmur_finalize_(numbers: Tensor) -> Tensor:
    """Apply MurmurHash3's 32-bit finalizer (Appleby) in place to int32 numbers of any shape."""
    for shift, factor in MURMUR_ROUNDS:
        numbers.bitwise_xor_((numbers >> shift).bitwise_and_((1 << (32 - shift)) - 1)).mul_(factor)
    return numbers.bitwise_xor_((numbers >> 16).bitwise_and_(0xFFFF))
