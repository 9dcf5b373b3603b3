"""Dropout that is a function of the sample, not of the batch, the process, the device or the order of calls.

torch's own draws for a whole batch at once. Here a value is dropped where the hash of (sample, dropout layer, its
position) is small, so nothing is drawn: a block that is computed again drops the same, and a GPU what a CPU drops.
"""

import torch
from torch import Tensor, nn

STRIDE = -0x61C88647
"""Between neighbours before they are hashed: 2^32 divided by the golden ratio, as a 32-bit number with sign."""
ROUNDS = ((16, -0x7A143595), (13, -0x3D4D51CB))
"""Shifts and factors of MurmurHash3's last step, likewise."""


class SampleDropout(nn.Module):
    """Sets a share ``rate`` of what it is given to zero, and divides the rest by 1 - ``rate``."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.number = 0
        """Which of a network's dropout layers this is; see :func:`tell_apart`."""

    def acts(self, keys: Tensor | None) -> bool:
        """Whether anything is dropped: in training, and where the samples have keys."""
        return self.training and self.rate > 0 and keys is not None

    def forward(self, values: Tensor, keys: Tensor | None) -> Tensor:
        """Values (B, …), keys (B,) int32: see :meth:`reca.runtime.seeding.SampleRng.keys`."""
        if keys is None or not self.acts(keys):
            return values
        threshold = round(self.rate * 2**32) - 2**31
        return values.masked_fill(hashes(keys + self.number, values) < threshold, 0) / (1 - self.rate)


def tell_apart(network: nn.Module) -> None:
    """Number a network's dropout layers, in the order in which it holds them."""
    layers = [module for module in network.modules() if isinstance(module, SampleDropout)]
    for number, layer in enumerate(layers):
        layer.number = number


def hashes(keys: Tensor, like: Tensor) -> Tensor:
    """A number for every position of ``like`` (B, …) that looks drawn from all of int32, from keys (B,) int32.

    Axis after axis, so it depends on a position's own indices and not on how many there are: padding changes nothing.
    """
    found = scrambled(keys.clone())
    for axis in range(1, like.ndim):
        places = torch.arange(like.shape[axis], dtype=torch.int32, device=like.device) * STRIDE
        # Made from ``like``, so that it has no numbers where that has none (tools/memory/simulation.py).
        wider = like.new_empty(like.shape[: axis + 1], dtype=torch.int32)
        found = scrambled(wider.copy_(found[..., None]).add_(places))
    return found


def scrambled(numbers: Tensor) -> Tensor:
    """The last step of MurmurHash3 (Appleby), in place: near numbers become unlike ones. int32 of any shape."""
    for shift, factor in ROUNDS:
        numbers.bitwise_xor_((numbers >> shift).bitwise_and_((1 << (32 - shift)) - 1)).mul_(factor)
    return numbers.bitwise_xor_((numbers >> 16).bitwise_and_(0xFFFF))
