"""A stand-in for the tokenizers that recordings lack: they hold token ids, not texts."""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


class RecordedTokenizer:
    """Turns prompt ``"row 3"``, wherever it stands in a text, into the recorded ids of row 3.

    Args:
        rows: Recorded ids without padding.
        otherwise: Number of the row that texts without a "row" become, such as the unconditional prompt.
        special: Ids of the special tokens that the model asks for by name.
        bos_token_id, eos_token_id, pad_token_id: As the model's tokenizer has them.
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
        found = [re.search(r"row (\d+)", text) for text in texts]
        return {"input_ids": [self._rows[int(match[1]) if match else self._otherwise] for match in found]}

    def convert_tokens_to_ids(self, token: str) -> int:
        """Id of a special token; 0 for those that only wrap a text."""
        return self._special.get(token, 0)


def unpadded(ids: Tensor, mask: Tensor | None, padding: int | None = None) -> list[list[int]]:
    """Recorded ids (B, L) as rows without padding; without a mask, ``padding`` says which they are."""
    if mask is None:
        real = torch.ones_like(ids, dtype=torch.bool) if padding is None else ids != padding
    else:
        real = mask.bool()
    return [row[keep].tolist() for row, keep in zip(ids, real, strict=True)]


def prompts(rows: Sequence[object]) -> list[str]:
    """One prompt a row, as :class:`RecordedTokenizer` reads them."""
    return [f"row {number}" for number in range(len(rows))]
