"""Show-o's token sequences: the positions of text and images, and the attention masks.

    text to image            [pad ...] [t2i] [bos] text [eos] [soi] codes [eoi]
    reconstruction, codes    [pad ...] [mmu] [soi] codes of the small image [eoi] [bos] text [eos] [soi] codes [eoi]
    reconstruction, CLIP     [mmu] [soi] features [eoi] [bos] text [eos] [pad ...] [soi] codes [eoi]
    understanding            [mmu] system [soi] features or codes [eoi] text [pad ...]

Text attends causally, images attend to themselves in both directions, padding is never attended to (arXiv 2408.12528,
section 3.2; RecA's two sequences: appendix of arXiv 2509.07295). Masks are bool, True where a row attends to a column.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

FEATURE_ID = -100
"""Placeholder in ``TokenBatch.ids`` of a CLIP feature, which is no token's embedding."""


@dataclass(frozen=True)
class Vocabulary:
    """Ids of the shared table: text, then [PAD] and the task tokens, then the image codes, last the mask."""

    eos: int
    """Also opens every text: bos and eos are one token."""
    pad: int
    soi: int
    eoi: int
    t2i: int
    mmu: int
    first_code: int
    codebook: int

    @classmethod
    def from_sizes(cls, text_size: int, eos: int, special: int, codebook: int) -> Self:
        """Return the official order: ``text_size`` text tokens, ``special`` tokens, the codes, the mask."""
        return cls(
            eos=eos,
            pad=text_size,
            soi=text_size + 1,
            eoi=text_size + 2,
            t2i=text_size + 5,
            mmu=text_size + 6,
            first_code=text_size + special,
            codebook=codebook,
        )

    @property
    def mask(self) -> int:
        """Id of a hidden code; it follows the last code, so that code number ``codebook`` means hidden."""
        return self.first_code + self.codebook

    def with_bos_eos(self, text: Sequence[int]) -> list[int]:
        """[bos] text [eos]; a text that already opens with bos gets no second one."""
        opened = list(text) if text and text[0] == self.eos else [self.eos, *text]
        return [*opened, self.eos]

    def image_ids(self, codes: Tensor) -> list[int]:
        """[soi] codes [eoi] of an image, codes (T,)."""
        return [self.soi, *(codes + self.first_code).tolist(), self.eoi]


@dataclass(frozen=True)
class TokenBatch:
    """Token sequences of a batch with their attention mask."""

    ids: Tensor
    """(B, L) int64; ``FEATURE_ID`` at CLIP features."""
    attention_mask: Tensor
    """(B, L, L) bool: row i attends to column j."""
    codes: slice
    """Positions of the generated codes; empty for understanding."""

    def concat(self, other: "TokenBatch") -> "TokenBatch":
        """Append another batch, whose length and code positions must be the same."""
        if self.codes != other.codes or self.ids.shape[1] != other.ids.shape[1]:
            raise ValueError(
                "only sequences of one length, with their codes at the same positions, can be concatenated"
            )
        return TokenBatch(
            torch.cat([self.ids, other.ids]), torch.cat([self.attention_mask, other.attention_mask]), self.codes
        )


def generation_sequences(
    vocabulary: Vocabulary,
    texts: Sequence[Sequence[int]],
    codes: Tensor,
    condition: Tensor | None = None,
    length: int | None = None,
) -> TokenBatch:
    """Build text to image, or the reconstruction of an image from the codes of a smaller one.

    Args:
        vocabulary: Ids of the special tokens.
        texts: Token ids per prompt, without bos and eos.
        codes: (B, T) of the generated image; ``vocabulary.codebook`` where hidden.
        condition: (B, N) codes of the conditioning image, if any.
        length: Total length to pad to, on the left; ``None``: that of the longest.

    Raises:
        ValueError: A sequence is longer than ``length``.
    """
    rows: list[list[int]] = []
    for number, text in enumerate(texts):
        if condition is None:
            rows.append([vocabulary.t2i, *vocabulary.with_bos_eos(text)])
        else:
            image = vocabulary.image_ids(condition[number])
            rows.append([vocabulary.mmu, *image, *vocabulary.with_bos_eos(text)])
    longest = max(map(len, rows))
    width = longest if length is None else length - codes.shape[1] - 2
    if longest > width:
        raise ValueError(f"a prompt and its task need {longest} tokens, but only {width} are free")
    prefix, padding = _pad(rows, width, vocabulary.pad, codes.device, pad_left=True)
    ids = torch.cat([prefix, _generated_ids(vocabulary, codes)], dim=1)
    mask = _causal_mask(F.pad(padding, (0, codes.shape[1] + 2)), padding_attends=True)
    mask[:, width:, width:] = True
    if condition is not None:
        for number, row in enumerate(rows):
            start = width - len(row) + 1
            span = slice(start, start + condition.shape[1] + 2)
            mask[number, span, span] = True
    return TokenBatch(ids, mask, slice(width + 1, width + 1 + codes.shape[1]))


def reconstruction_sequences(
    vocabulary: Vocabulary, texts: Sequence[Sequence[int]], codes: Tensor, features: int, text_slots: int
) -> TokenBatch:
    """Build the reconstruction of an image from ``features`` CLIP embeddings.

    The text fills ``text_slots`` positions, padded on the right, so the distance between image and codes is constant.
    Every position attends to the features, also those before them; the codes attend to each other, but not to [eoi].

    Raises:
        ValueError: A text with its bos and eos needs more than ``text_slots`` positions.
    """
    texts = [vocabulary.with_bos_eos(text) for text in texts]
    longest = max(map(len, texts))
    if longest > text_slots:
        raise ValueError(
            f"a template needs {longest} tokens, but only {text_slots} are free: "
            "shorten it or raise model.template_tokens"
        )
    head = [vocabulary.mmu, vocabulary.soi, *[FEATURE_ID] * features, vocabulary.eoi]
    prefix, padding = _pad([[*head, *text] for text in texts], len(head) + text_slots, vocabulary.pad, codes.device)
    ids = torch.cat([prefix, _generated_ids(vocabulary, codes)], dim=1)
    mask = _causal_mask(F.pad(padding, (0, codes.shape[1] + 2)), padding_attends=False)
    mask[:, :, 2 : 2 + features] = True
    generated = slice(prefix.shape[1] + 1, prefix.shape[1] + 1 + codes.shape[1])
    mask[:, generated, generated] = True
    return TokenBatch(ids, mask, generated)


def understanding_sequences(
    vocabulary: Vocabulary,
    system: Sequence[int],
    image: Tensor,
    texts: Sequence[Sequence[int]],
    pad_left: bool = False,
) -> TokenBatch:
    """Build an image followed by a text.

    Args:
        vocabulary: Ids of the special tokens.
        system: Token ids between [mmu] and the image; CLIP only.
        image: Codes (B, N) int64, or CLIP features (B, N, D), which get placeholders.
        texts: Token ids after [eoi], with all their special tokens.
        pad_left: Pad on the left, so that answers can be continued; training pads on the right.
    """
    as_codes, features = image.ndim == 2, image.shape[1]
    head = [vocabulary.mmu, *system]
    placeholders = [vocabulary.soi, *[FEATURE_ID] * features, vocabulary.eoi]
    rows: list[list[int]] = []
    for number, text in enumerate(texts):
        rows.append([*head, *(vocabulary.image_ids(image[number]) if as_codes else placeholders), *text])
    ids, padding = _pad(rows, max(map(len, rows)), vocabulary.pad, image.device, pad_left)
    mask = _causal_mask(padding, padding_attends=True)
    # Attended to by all rows: with codes everything up to [eoi], with CLIP the features only (official masks).
    first, last = (0, len(head) + features + 2) if as_codes else (len(head) + 1, len(head) + 1 + features)
    for number, row in enumerate(rows):
        start = ids.shape[1] - len(row) if pad_left else 0
        mask[number, start:, start + first : start + last] = True
    return TokenBatch(ids, mask, slice(0, 0))


def _generated_ids(vocabulary: Vocabulary, codes: Tensor) -> Tensor:
    """[soi] codes [eoi] as ids (B, T + 2)."""
    ends = torch.tensor([[vocabulary.soi, vocabulary.eoi]], device=codes.device).expand(len(codes), -1)
    return torch.cat([ends[:, :1], codes + vocabulary.first_code, ends[:, 1:]], dim=1)


def _pad(
    rows: Sequence[Sequence[int]], width: int, pad: int, device: torch.device, pad_left: bool = False
) -> tuple[Tensor, Tensor]:
    """Ids (B, width) and their padding (B, width) bool."""
    ids = torch.full((len(rows), width), pad)
    padding = torch.ones(len(rows), width, dtype=torch.bool)
    for number, row in enumerate(rows):
        columns = slice(width - len(row), width) if pad_left else slice(0, len(row))
        ids[number, columns] = torch.tensor(row)
        padding[number, columns] = False
    return ids.to(device), padding.to(device)


def _causal_mask(padding: Tensor, padding_attends: bool) -> Tensor:
    """Causal and without padding; padding at the very front must attend to padding, or its rows would be empty."""
    length = padding.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=padding.device).tril()
    attended = ~padding[:, None, :]
    if padding_attends:
        attended = attended | padding[:, :, None]
    return causal & attended
