"""Tensors of different shapes packed into one; equal shapes as a plain batch."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

Shapes = Sequence[tuple[int, ...]]


@dataclass(frozen=True)
class PackedTensor:
    """One tensor per image of a batch, of equal or different shapes."""

    values: Tensor
    """(B, …), or (N,) where rows differ in shape; see :func:`pack`."""
    shapes: Shapes | None = None
    """Shape of every row; ``None``: all are equal."""

    @classmethod
    def from_rows(cls, rows: Sequence[Tensor]) -> Self:
        """Pack one tensor per image."""
        return cls(*pack(rows))

    def rows(self) -> list[Tensor]:
        """Return one tensor per image; views of ``values``."""
        return unpack(self.values, self.shapes)


def map_tensors(batch: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Apply a function to every tensor of a batch: a tensor, a list of tensors, or a :class:`PackedTensor`."""
    if isinstance(batch, PackedTensor):
        return replace(batch, values=function(batch.values))
    return [function(tensor) for tensor in batch] if isinstance(batch, list) else function(batch)


def to_device(batch: Any, device: torch.device) -> Any:
    """Copy a batch to a device; from pinned memory the copy is asynchronous."""
    return map_tensors(batch, lambda tensor: tensor.to(device, non_blocking=True))


def pin_memory(batch: Any, device: torch.device) -> Any:
    """Pin a batch's memory where ``device`` is a GPU, so that it can copy asynchronously."""
    return map_tensors(batch, Tensor.pin_memory) if device.type == "cuda" else batch


def pack(rows: Sequence[Tensor]) -> tuple[Tensor, Shapes | None]:
    """Stack rows of equal shape to (B, …) and ``None``; flatten and concatenate others to (N,), with their shapes."""
    shapes = [tuple(row.shape) for row in rows]
    if len(set(shapes)) == 1:
        return torch.stack(list(rows)), None
    return torch.cat([row.flatten() for row in rows]), shapes


def unpack(values: Tensor, shapes: Shapes | None) -> list[Tensor]:
    """Undo :func:`pack`; the results are views of ``values``."""
    if shapes is None:
        return list(values)
    flat = values.split([math.prod(shape) for shape in shapes])
    return [row.view(shape) for row, shape in zip(flat, shapes, strict=True)]
