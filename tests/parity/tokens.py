"""A tokenizer for recordings, which hold token ids instead of texts."""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


class RecordedTokenizer:
    """Returns the recorded ids of row 3 for a text that contains ``"row 3"``.

    Args:
        rows: Recorded ids without padding.
        special: Ids of the special tokens that the model looks up.
        pad_token_id, bos_token_id, eos_token_id: The model's ids.
        otherwise: Row of texts without "row", such as the unconditional prompt.
    """

    bos_token = eos_token = pad_token = ""

    def __init__(
        self,
        rows: Sequence[Sequence[int]],
        special: Mapping[str, int],
        pad_token_id: int,
        bos_token_id: int | None = None,
        eos_token_id: int | None = None,
        otherwise: int = 0,
    ) -> None:
        self._rows = [list(row) for row in rows]
        self._special = dict(special)
        self._otherwise = otherwise
        self.pad_token_id, self.bos_token_id, self.eos_token_id = pad_token_id, bos_token_id, eos_token_id

    def __call__(self, texts: Sequence[str], add_special_tokens: bool = False) -> dict[str, list[list[int]]]:
        matches = [re.search(r"row (\d+)", text) for text in texts]
        return {"input_ids": [self._rows[int(match[1]) if match else self._otherwise] for match in matches]}

    def convert_tokens_to_ids(self, token: str) -> int:
        """Return the id of a special token; 0 for markers that only wrap a text."""
        return self._special.get(token, 0)


def unpadded(ids: Tensor, mask: Tensor | None, padding: int | None = None) -> list[list[int]]:
    """Return recorded ids (B, L) as rows without padding, by the mask or by the padding id."""
    if mask is None:
        real = torch.ones_like(ids, dtype=torch.bool) if padding is None else ids != padding
    else:
        real = mask.bool()
    return [row[keep].tolist() for row, keep in zip(ids, real, strict=True)]


def prompts(rows: Sequence[object]) -> list[str]:
    """Return a prompt per row for :class:`RecordedTokenizer`."""
    return [f"row {number}" for number in range(len(rows))]
