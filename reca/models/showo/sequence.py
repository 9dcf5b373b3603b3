"""Show-o's sequences: where text, an image that is read and an image that is drawn stand, and who sees whom.

    text to image        [pad ...] [t2i] [bos] text [eos] [soi] codes [eoi]
    rebuild, from codes  [pad ...] [mmu] [soi] codes of the small image [eoi] [bos] text [eos] [soi] codes [eoi]
    rebuild, from CLIP   [mmu] [soi] features [eoi] [bos] text [eos] [pad ...] [soi] codes [eoi]
    understanding        [mmu] system [soi] features or codes [eoi] text [pad ...]

Text sees what stands before it, images see themselves in both directions, nobody sees padding (arXiv 2408.12528,
section 3.2; RecA's two sequences: appendix of arXiv 2509.07295). Masks here are bool, True where a row sees a column.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

FEATURE = -100
"""Stands in ``Packed.ids`` where an embedding goes that is no token's."""


@dataclass(frozen=True)
class Vocabulary:
    """Ids of one shared table: text, then [PAD] and the task tokens, then the image codes, last the mask."""

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
    def after(cls, text_size: int, eos: int, special: int, codebook: int) -> Self:
        """The official order behind ``text_size`` text tokens, with ``special`` tokens before the first code."""
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
        """The id of a hidden code; it follows the last code, so that code number ``codebook`` means hidden."""
        return self.first_code + self.codebook

    def framed(self, text: Sequence[int]) -> list[int]:
        """[bos] text [eos]; a text that opens with bos already keeps its own."""
        opened = list(text) if text and text[0] == self.eos else [self.eos, *text]
        return [*opened, self.eos]


@dataclass(frozen=True)
class Packed:
    """Sequences of a batch."""

    ids: Tensor
    """(B, L) int64; ``FEATURE`` where an embedding goes."""
    visible: Tensor
    """(B, L, L) bool: does row i see column j."""
    codes: slice
    """Where the codes stand that are drawn; empty if none are."""

    def joined(self, other: "Packed") -> "Packed":
        """Both batches as one; their codes must stand at the same place."""
        if self.codes != other.codes or self.ids.shape[1] != other.ids.shape[1]:
            raise ValueError("only sequences of one length, with their codes at one place, can be joined")
        return Packed(torch.cat([self.ids, other.ids]), torch.cat([self.visible, other.visible]), self.codes)


def drawing(
    vocabulary: Vocabulary,
    texts: Sequence[Sequence[int]],
    codes: Tensor,
    condition: Tensor | None = None,
    length: int | None = None,
) -> Packed:
    """Text to image, or an image rebuilt from the codes of a smaller one.

    Args:
        vocabulary: Ids of the special tokens.
        texts: Token ids of each prompt, without bos and eos.
        codes: (B, T) of the image that is drawn; ``vocabulary.codebook`` where hidden.
        condition: (B, N) codes of the image that is read, if any.
        length: Total length to pad to, on the left; ``None``: that of the longest.

    Raises:
        ValueError: A sequence is longer than ``length``.
    """
    rows: list[list[int]] = []
    for number, text in enumerate(texts):
        if condition is None:
            rows.append([vocabulary.t2i, *vocabulary.framed(text)])
        else:
            rows.append([vocabulary.mmu, *_image(vocabulary, condition[number]), *vocabulary.framed(text)])
    width = max(map(len, rows)) if length is None else length - codes.shape[1] - 2
    if max(map(len, rows)) > width:
        raise ValueError(f"a prompt and its task need {max(map(len, rows))} tokens, and there is room for {width}")
    prefix, pads = _padded(rows, width, vocabulary.pad, codes.device, left=True)
    ids = torch.cat([prefix, _drawn(vocabulary, codes)], dim=1)
    visible = _visible(F.pad(pads, (0, codes.shape[1] + 2)), padding_sees_padding=True)
    visible[:, width:, width:] = True
    if condition is not None:
        for number, row in enumerate(rows):
            start = width - len(row) + 1
            span = slice(start, start + condition.shape[1] + 2)
            visible[number, span, span] = True
    return Packed(ids, visible, slice(width + 1, width + 1 + codes.shape[1]))


def rebuilding(
    vocabulary: Vocabulary, texts: Sequence[Sequence[int]], codes: Tensor, features: int, text_slots: int
) -> Packed:
    """An image rebuilt from ``features`` CLIP embeddings.

    The text fills ``text_slots`` positions with padding behind it, hence the distance between image and codes is
    always the same. Everybody sees the features, also those before them; the codes see each other, but not [eoi].

    Raises:
        ValueError: A text with its bos and eos needs more than ``text_slots`` positions.
    """
    framed = [vocabulary.framed(text) for text in texts]
    if max(map(len, framed)) > text_slots:
        raise ValueError(
            f"a template needs {max(map(len, framed))} tokens, and there is room for {text_slots}: "
            "shorten it or raise model.template_tokens"
        )
    head = [vocabulary.mmu, vocabulary.soi, *[FEATURE] * features, vocabulary.eoi]
    prefix, pads = _padded([head + row for row in framed], len(head) + text_slots, vocabulary.pad, codes.device)
    ids = torch.cat([prefix, _drawn(vocabulary, codes)], dim=1)
    visible = _visible(F.pad(pads, (0, codes.shape[1] + 2)), padding_sees_padding=False)
    visible[:, :, 2 : 2 + features] = True
    drawn = slice(prefix.shape[1] + 1, prefix.shape[1] + 1 + codes.shape[1])
    visible[:, drawn, drawn] = True
    return Packed(ids, visible, drawn)


def reading(
    vocabulary: Vocabulary,
    system: Sequence[int],
    image: Tensor,
    texts: Sequence[Sequence[int]],
    left: bool = False,
) -> Packed:
    """An image and the text that follows it.

    Args:
        vocabulary: Ids of the special tokens.
        system: Token ids between [mmu] and the image; CLIP only.
        image: Codes (B, N) int64, or CLIP features (B, N, D), for which slots are kept.
        texts: Token ids behind [eoi], framed as they should be.
        left: Pad on the left, so that answers can be continued; in training padding stands on the right.
    """
    as_codes, features = image.ndim == 2, image.shape[1]
    head = [vocabulary.mmu, *system]
    rows: list[list[int]] = []
    for number, text in enumerate(texts):
        slots = [vocabulary.soi, *[FEATURE] * features, vocabulary.eoi]
        rows.append([*head, *(_image(vocabulary, image[number]) if as_codes else slots), *text])
    ids, pads = _padded(rows, max(map(len, rows)), vocabulary.pad, image.device, left)
    visible = _visible(pads, padding_sees_padding=True)
    # Open to all rows: with codes the whole beginning up to [eoi], with CLIP the features only (official masks).
    first, last = (0, len(head) + features + 2) if as_codes else (len(head) + 1, len(head) + 1 + features)
    for number, row in enumerate(rows):
        start = ids.shape[1] - len(row) if left else 0
        visible[number, start:, start + first : start + last] = True
    return Packed(ids, visible, slice(0, 0))


def _image(vocabulary: Vocabulary, codes: Tensor) -> list[int]:
    return [vocabulary.soi, *(codes + vocabulary.first_code).tolist(), vocabulary.eoi]


def _drawn(vocabulary: Vocabulary, codes: Tensor) -> Tensor:
    """[soi] codes [eoi] as ids (B, T + 2)."""
    ends = torch.tensor([[vocabulary.soi, vocabulary.eoi]], device=codes.device).expand(len(codes), -1)
    return torch.cat([ends[:, :1], codes + vocabulary.first_code, ends[:, 1:]], dim=1)


def _padded(
    rows: Sequence[Sequence[int]], width: int, pad: int, device: torch.device, left: bool = False
) -> tuple[Tensor, Tensor]:
    """Ids (B, width), and which of them are padding."""
    ids = torch.full((len(rows), width), pad)
    pads = torch.ones(len(rows), width, dtype=torch.bool)
    for number, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(0, len(row))
        ids[number, place] = torch.tensor(row)
        pads[number, place] = False
    return ids.to(device), pads.to(device)


def _visible(pads: Tensor, padding_sees_padding: bool) -> Tensor:
    """Causal, and blind to padding; padding at the very front must see itself, or its rows would be empty."""
    length = pads.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=pads.device).tril()
    shown = ~pads[:, None, :]
    if padding_sees_padding:
        shown = shown | pads[:, :, None]
    return causal & shown
