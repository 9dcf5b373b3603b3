"""Tensors of unlike shapes as one tensor and a list of their shapes; tensors of one shape as a plain batch."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Shapes = Sequence[tuple[int, ...]]


def join(rows: Sequence[Tensor]) -> tuple[Tensor, Shapes | None]:
    """Rows of one shape as (B, …) and ``None``; of unlike shapes as all their numbers in a row (N,), and the shapes."""
    shapes = [tuple(row.shape) for row in rows]
    if len(set(shapes)) == 1:
        return torch.stack(list(rows)), None
    return torch.cat([row.flatten() for row in rows]), shapes


def split(values: Tensor, shapes: Shapes | None) -> list[Tensor]:
    """The inverse of :func:`join`; views of ``values``."""
    if shapes is None:
        return list(values)
    parts = values.split([math.prod(shape) for shape in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
