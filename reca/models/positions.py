"""Fixed positions and times as vectors of sines and cosines (Vaswani et al., arXiv 1706.03762, section 3.5)."""

import math

import torch
from torch import Tensor, nn

LONGEST_WAVE = 10_000.0


def sincos_table(side: int, width: int) -> Tensor:
    """Return the positions of a square grid in row order, (side², width) float32.

    The first half of a vector encodes the column, the second the row; each half is sines, then cosines, of
    p · 10000^(-i / n) for i < n = width / 4.

    Raises:
        ValueError: ``width`` is not a multiple of 4.
    """
    if width % 4:
        raise ValueError(f"a table of grid positions needs a width that is a multiple of 4, got {width}")
    waves = LONGEST_WAVE ** (-torch.arange(width // 4, dtype=torch.float64, device="cpu") / (width // 4))
    angles = torch.arange(side, dtype=torch.float64, device="cpu")[:, None] * waves  # (side, width / 4)
    line = torch.cat([angles.sin(), angles.cos()], dim=1)
    columns = line[None].expand(side, side, -1)
    rows = line[:, None].expand(side, side, -1)
    return torch.cat([columns, rows], dim=2).reshape(side * side, width).float()


def time_waves(times: Tensor, width: int) -> Tensor:
    """Return cosines, then sines, of t · 10000^(-2i / width) for times (N,): (N, width) float32."""
    half = width // 2
    waves = torch.exp(-math.log(LONGEST_WAVE) * torch.arange(half, dtype=torch.float32, device=times.device) / half)
    angles = times.float()[:, None] * waves
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class GridPositions(nn.Module):
    """A grid's position table as a buffer in the state dict, as in official checkpoints."""

    def __init__(self, side: int, width: int) -> None:
        super().__init__()
        self.side = side
        self.pos_embed: Tensor
        self.register_buffer("pos_embed", sincos_table(side, width))

    def forward(self, rows: int, columns: int) -> Tensor:
        """Return the positions of a grid's cells in row order, (rows · columns, width)."""
        return self.pos_embed[grid_cells(rows, columns, self.side).to(self.pos_embed.device)]


def grid_cells(rows: int, columns: int, side: int) -> Tensor:
    """Return the indices of a grid in the upper left corner of a ``side`` x ``side`` table, (rows · columns,).

    Raises:
        ValueError: The grid is larger than the table.
    """
    if max(rows, columns) > side:
        raise ValueError(f"a grid of {rows} x {columns} patches does not fit into {side} x {side}; use a smaller image")
    return (torch.arange(rows)[:, None] * side + torch.arange(columns)).flatten()


class TimestepEmbedder(nn.Module):
    """Embedding of times: sines and cosines, then an MLP (Peebles and Xie, arXiv 2212.09748)."""

    def __init__(self, width: int, waves: int = 256) -> None:
        super().__init__()
        self.waves = waves
        self.mlp = nn.Sequential(nn.Linear(waves, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, times: Tensor) -> Tensor:
        """Embed times (N,) in the unit of training (BAGEL 0..1, MAR 0..999) as (N, width)."""
        dtype = self.mlp.get_parameter("0.bias").dtype  # the matrix itself may be stored in fewer bits
        vectors: Tensor = self.mlp(time_waves(times, self.waves).to(dtype))
        return vectors
