"""Packed sequences of text and images for a mixture of transformers: a sample is a list of segments.

    text   [bos ids eos]         causal; positions grow token by token
    image  [soi tokens eoi]      every token attends to the whole image; all share one position

A segment attends to itself and to all segments before it. An image that is still noise must be the last segment.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reca.models.bagel.transformer import PADDING_INDEX, Layout


@dataclass(frozen=True)
class Segment:
    """A text or an image in a sample's sequence."""

    understanding: Tensor
    """Embeddings for the understanding expert, (U, D): a text, an image with its markers, or the markers of latents."""
    generation: Tensor | None = None
    """Latent tokens between two markers: embeddings for the generation expert, (G, D)."""
    causal: bool = False

    def __len__(self) -> int:
        return len(self.understanding) + (0 if self.generation is None else len(self.generation))


@dataclass(frozen=True)
class SequenceCursor:
    """Index and rotary position of the next token of a sample's sequence."""

    index: int = 0
    position: int = 0


@dataclass(frozen=True)
class PackedBatch:
    """Padded sequences, split by expert."""

    understanding: Tensor
    """(B, U, D)"""
    generation: Tensor
    """(B, G, D)"""
    layout: Layout
    """Layout of the U + G tokens."""
    cursors: list[SequenceCursor]
    """One per sample, after its last token."""
    latent_lengths: list[int]
    """Latent tokens per sample; the rest of a row is padding."""


def pack(samples: Sequence[Sequence[Segment]], cursors: Sequence[SequenceCursor] | None, like: Tensor) -> PackedBatch:
    """Pack sequences into a batch.

    Args:
        samples: Segments per sample; a sample may have none.
        cursors: Ends of the cached sequences; ``None``: there is no cache.
        like: Tensor (…, D) with the width, dtype and device of samples without tokens.
    """
    rows = [_Row(cursor) for cursor in cursors or [SequenceCursor()] * len(samples)]
    for row, segments in zip(rows, samples, strict=True):
        for segment in segments:
            row.append(segment)
    understanding, understanding_layout = _pad([row.understanding for row in rows], like)
    generation, generation_layout = _pad([row.generation for row in rows], like)
    return PackedBatch(
        understanding,
        generation,
        understanding_layout + generation_layout,
        [SequenceCursor(row.index, row.position) for row in rows],
        [sum(len(embeds) for embeds, _ in row.generation) for row in rows],
    )


class _Row:
    """One sample while it is packed: per expert, embeddings (n, D) and index, attend_until and position (3, n)."""

    def __init__(self, cursor: SequenceCursor) -> None:
        self.index, self.position = cursor.index, cursor.position
        self.understanding: list[tuple[Tensor, Tensor]] = []
        self.generation: list[tuple[Tensor, Tensor]] = []

    def append(self, segment: Segment) -> None:
        first, last = self.index, self.index + len(segment) - 1
        indices = torch.arange(first, last + 1)
        if segment.causal:
            layout = _layout(indices, indices, self.position + indices - first)
            self.understanding.append((segment.understanding, layout))
        elif segment.generation is None:
            self.understanding.append((segment.understanding, _layout(indices, last, self.position)))
        else:
            self.generation.append((segment.generation, _layout(indices[1:-1], last, self.position)))
            self.understanding.append((segment.understanding, _layout(indices[[0, -1]], last, self.position)))
        self.index = last + 1
        self.position += len(segment) if segment.causal else 1


def _layout(index: Tensor, attend_until: Tensor | int, position: Tensor | int) -> Tensor:
    return torch.stack(torch.broadcast_tensors(index, torch.as_tensor(attend_until), torch.as_tensor(position)))


def _pad(rows: Sequence[Sequence[tuple[Tensor, Tensor]]], like: Tensor) -> tuple[Tensor, Layout]:
    lengths = [sum(len(embeds) for embeds, _ in parts) for parts in rows]
    layout = torch.full((3, len(rows), max(lengths)), PADDING_INDEX)
    layout[2] = 0
    for row, (parts, length) in enumerate(zip(rows, lengths, strict=True)):
        if parts:
            layout[:, row, :length] = torch.cat([part for _, part in parts], dim=1)
    padding = [like.new_zeros(max(lengths) - length, like.shape[-1]) for length in lengths]
    embeds = [torch.cat([*(part for part, _ in parts), pad]) for parts, pad in zip(rows, padding, strict=True)]
    return torch.stack(embeds), Layout(*layout.unbind(0))
