"""All randomness of the models: one stream per sample, every draw named.

A sample's draws depend on its own seed alone, not on its batch or on the number of ranks. The names let a parity test
replay draws that another program recorded.
"""

import hashlib
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor


def derive_seed(*parts: object) -> int:
    """Return a 63-bit seed, a function of ``parts`` alone."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


class SampleRng:
    """Random numbers for a batch: row ``i`` of every draw comes from the ``i``-th seed only.

    The generators are on the CPU, so a seed gives the same numbers on every device.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self._seeds = list(seeds)
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    @classmethod
    def derived(cls, *parts: object, size: int) -> Self:
        """Return one stream per row, a function of ``parts`` and the row number."""
        return cls([derive_seed(*parts, row) for row in range(size)])

    def __len__(self) -> int:
        return len(self._generators)

    def keys(self, name: str) -> Tensor:
        """Return a number per sample, (B,) int32, a function of its seed and ``name``; no generator advances."""
        return torch.tensor([derive_seed(seed, name) % 2**32 - 2**31 for seed in self._seeds], dtype=torch.int32)

    def normal(self, name: str, shape: Sequence[int] = ()) -> Tensor:
        """Return standard normal numbers, (B, *shape) float32."""
        return torch.stack([torch.randn(tuple(shape), generator=g) for g in self._generators])

    def normals(self, name: str, shapes: Sequence[Sequence[int]]) -> list[Tensor]:
        """Return standard normal numbers, one tensor per sample and shape."""
        pairs = zip(shapes, self._generators, strict=True)
        return [torch.randn(tuple(shape), generator=generator) for shape, generator in pairs]

    def uniform(self, name: str, shape: Sequence[int] = ()) -> Tensor:
        """Return uniform numbers from [0, 1), (B, *shape) float32."""
        return torch.stack([torch.rand(tuple(shape), generator=g) for g in self._generators])

    def permutation(self, name: str, length: int) -> Tensor:
        """Return a random permutation of ``range(length)`` per sample, (B, length) int64."""
        return torch.stack([torch.randperm(length, generator=g) for g in self._generators])

    def categorical(self, name: str, logits: Tensor) -> Tensor:
        """Sample a class per row of ``logits`` (B, ..., K) from softmax(logits): (B, ...) int64, on their device."""
        # Inverse of the distribution function: one uniform number per row, where Gumbel noise needs one per class.
        uniform = self.uniform(name, logits.shape[1:-1]).to(logits.device)
        cumulative = logits.double().softmax(dim=-1).cumsum(dim=-1)
        return (cumulative <= uniform[..., None].double() * cumulative[..., -1:]).sum(dim=-1)
