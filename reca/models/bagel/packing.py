"""Sequences of text and images for a mixture of transformers: a sample is a list of stretches, a batch is padded.

    text   [bos ids eos]         causal, positions grow token by token
    image  [soi tokens eoi]      every token sees the whole image; all share one position

Each stretch sees all stretches before it. A drawn image that is still noise must come last, for nothing may see it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reca.models.bagel.transformer import PADDING_INDEX, Layout


@dataclass(frozen=True)
class Segment:
    """Part of one sample's sequence."""

    read: Tensor
    """Embeddings for the reading expert, (U, D): text, a seen image with its markers, or the two markers of latents."""
    drawn: Tensor | None = None
    """Latent tokens between two markers, for the drawing expert, (G, D)."""
    causal: bool = False

    def __len__(self) -> int:
        return len(self.read) + (0 if self.drawn is None else len(self.drawn))


@dataclass(frozen=True)
class SequenceCursor:
    """Where a sample's sequence goes on."""

    place: int = 0
    position: int = 0


@dataclass(frozen=True)
class Batch:
    """Padded sequences, the tokens of each expert side by side."""

    read: Tensor
    """(B, U, D)"""
    drawn: Tensor
    """(B, G, D)"""
    layout: Layout
    """Of the U + G tokens."""
    ends: list[SequenceCursor]
    drawn_lengths: list[int]
    """Latent tokens of each sample; the rest of its row is padding."""


def pack(samples: Sequence[Sequence[Segment]], starts: Sequence[SequenceCursor] | None, like: Tensor) -> Batch:
    """Put sequences into a batch.

    Args:
        samples: Stretches of each sample, none at all allowed.
        starts: Where each sample's memory ended; ``None``: there is none.
        like: Says width, type and device where there are no tokens: (…, D).
    """
    rows = [_Row(end) for end in starts or [SequenceCursor()] * len(samples)]
    for row, stretches in zip(rows, samples, strict=True):
        for stretch in stretches:
            row.append(stretch)
    read, read_layout = _side([row.read for row in rows], [row.read_at for row in rows], like)
    drawn, drawn_layout = _side([row.drawn for row in rows], [row.drawn_at for row in rows], like)
    ends = [SequenceCursor(row.place, row.position) for row in rows]
    lengths = [sum(map(len, row.drawn)) for row in rows]
    return Batch(read, drawn, read_layout + drawn_layout, ends, lengths)


class _Row:
    """One sample while it is put together: embeddings, and place, until and position (3, n) of their tokens."""

    def __init__(self, start: SequenceCursor) -> None:
        self.place, self.position = start.place, start.position
        self.read: list[Tensor] = []
        self.drawn: list[Tensor] = []
        self.read_at: list[Tensor] = []
        self.drawn_at: list[Tensor] = []

    def append(self, stretch: Segment) -> None:
        first, last = self.place, self.place + len(stretch) - 1
        self.read.append(stretch.read)
        places = torch.arange(first, last + 1)
        if stretch.causal:
            self.read_at.append(_at(places, places, self.position + places - first))
        elif stretch.drawn is None:
            self.read_at.append(_at(places, last, self.position))
        else:
            self.drawn.append(stretch.drawn)
            self.drawn_at.append(_at(places[1:-1], last, self.position))
            self.read_at.append(_at(places[[0, -1]], last, self.position))
        self.place = last + 1
        self.position += len(stretch) if stretch.causal else 1


def _at(place: Tensor, until: Tensor | int, position: Tensor | int) -> Tensor:
    return torch.stack(torch.broadcast_tensors(place, torch.as_tensor(until), torch.as_tensor(position)))


def _side(embeds: Sequence[Sequence[Tensor]], at: Sequence[Sequence[Tensor]], like: Tensor) -> tuple[Tensor, Layout]:
    lengths = [sum(part.shape[1] for part in parts) for parts in at]
    numbers = torch.full((3, len(at), max(lengths)), PADDING_INDEX)
    numbers[2] = 0
    for row, (parts, length) in enumerate(zip(at, lengths, strict=True)):
        if parts:
            numbers[:, row, :length] = torch.cat([*parts], dim=1)
    padded = [like.new_zeros(max(lengths) - length, like.shape[-1]) for length in lengths]
    rows = [torch.cat([*parts, padding]) for parts, padding in zip(embeds, padded, strict=True)]
    return torch.stack(rows), Layout(*numbers.unbind(0))
