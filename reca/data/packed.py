"""Tensors of unlike shapes as one tensor and a list of their shapes; tensors of one shape as a plain batch."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

Shapes = Sequence[tuple[int, ...]]


@dataclass(frozen=True)
class PackedTensor:
    """One tensor for each image of a batch, alike in shape or not."""

    values: Tensor
    """(B, …); of rows of unlike shapes all their numbers in a row (N,), see :func:`pack`"""
    shapes: Shapes | None = None
    """Of each row; ``None``: they are all alike."""

    @classmethod
    def from_rows(cls, rows: Sequence[Tensor]) -> Self:
        """Of each image's tensor."""
        return cls(*pack(rows))

    def rows(self) -> list[Tensor]:
        """Each image's tensor; views of ``values``."""
        return unpack(self.values, self.shapes)


def map_tensors(batch: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same batch with every tensor in it changed: a tensor, a list of tensors, or a :class:`PackedTensor`."""
    if isinstance(batch, PackedTensor):
        return replace(batch, values=change(batch.values))
    return [change(each) for each in batch] if isinstance(batch, list) else change(batch)


def to_device(batch: Any, device: torch.device) -> Any:
    """The same batch, brought from the CPU to a device; what lies in pinned memory goes while the CPU goes on."""
    return map_tensors(batch, lambda tensor: tensor.to(device, non_blocking=True))


def pin_memory(batch: Any, device: torch.device) -> Any:
    """The same batch in memory that a GPU copies from by itself, while the CPU goes on; for a CPU as it is."""
    return map_tensors(batch, Tensor.pin_memory) if device.type == "cuda" else batch


def pack(rows: Sequence[Tensor]) -> tuple[Tensor, Shapes | None]:
    """Rows of one shape as (B, …) and ``None``; of unlike shapes as all their numbers in a row (N,), and the shapes."""
    shapes = [tuple(row.shape) for row in rows]
    if len(set(shapes)) == 1:
        return torch.stack(list(rows)), None
    return torch.cat([row.flatten() for row in rows]), shapes


def unpack(values: Tensor, shapes: Shapes | None) -> list[Tensor]:
    """The inverse of :func:`pack`; views of ``values``."""
    if shapes is None:
        return list(values)
    parts = values.split([math.prod(shape) for shape in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
