"""All randomness of the models: one stream per sample, every draw named.

What a sample draws depends on its own seed alone, not on the batch it happens to stand in nor on the
number of processes. The names let a parity test replay the draws that another program recorded.
"""

import hashlib
from collections.abc import Sequence
from typing import NoReturn, Self

import torch
from torch import Tensor


def derive_seed(*parts: object) -> int:
    """A 63-bit seed that is a function of ``parts``, the same on every machine and in every process."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


class SampleRng:
    """Random numbers for a batch: row ``i`` of every draw comes from the ``i``-th seed only.

    Draws are made on the CPU, so a seed means the same numbers on every device.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self._seeds = list(seeds)
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    @classmethod
    def derived(cls, *parts: object, size: int) -> Self:
        """One stream per row, each a function of ``parts`` and the row's number."""
        return cls([derive_seed(*parts, row) for row in range(size)])

    def __len__(self) -> int:
        return len(self._generators)

    def keys(self, name: str) -> Tensor:
        """A number for each sample, (B,) int32, a function of its seed and of ``name``: nothing is drawn."""
        return torch.tensor([derive_seed(seed, name) % 2**32 - 2**31 for seed in self._seeds], dtype=torch.int32)

    def normal(self, name: str, shape: Sequence[int] = ()) -> Tensor:
        """Standard normal numbers, (B, *shape) float32."""
        return torch.stack([torch.randn(tuple(shape), generator=g) for g in self._generators])

    def normals(self, name: str, shapes: Sequence[Sequence[int]]) -> list[Tensor]:
        """As :meth:`normal`, each sample in a shape of its own."""
        pairs = zip(shapes, self._generators, strict=True)
        return [torch.randn(tuple(shape), generator=generator) for shape, generator in pairs]

    def uniform(self, name: str, shape: Sequence[int] = ()) -> Tensor:
        """Numbers from [0, 1), (B, *shape) float32."""
        return torch.stack([torch.rand(tuple(shape), generator=g) for g in self._generators])

    def permutation(self, name: str, length: int) -> Tensor:
        """A random order of ``range(length)`` per sample, (B, length) int64."""
        return torch.stack([torch.randperm(length, generator=g) for g in self._generators])

    def categorical(self, name: str, logits: Tensor) -> Tensor:
        """One class per row of ``logits`` (B, ..., K), drawn from softmax(logits): (B, ...) int64, on their device."""
        # By the inverse of the distribution function: one uniform number a row, where Gumbel noise takes one a class.
        uniform = self.uniform(name, logits.shape[1:-1]).to(logits.device)
        reached = logits.double().softmax(dim=-1).cumsum(dim=-1)
        return (reached <= uniform[..., None].double() * reached[..., -1:]).sum(dim=-1)


class ForbiddenRng(SampleRng):
    """Stands in where nothing may be drawn: whatever is asked of it is an error.

    Args:
        why: What to say then.
    """

    def __init__(self, why: str) -> None:
        self._why = why

    def __getattr__(self, name: str) -> NoReturn:
        # The seeds and their generators, which this one does not have.
        raise TypeError(self._why)
