"""Tokenizers of checkpoints, and batches of token sequences: padding, loss masks and the next-token loss."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoTokenizer

from reca.models.base import Loss

IGNORE_INDEX = -100
"""Label of a token without a loss, as in PyTorch and transformers."""


def read_tokenizer(folder: Path) -> Any:
    """Return the tokenizer in a folder; Python files in it are never run, nor is the user asked to allow it.

    Raises:
        FileNotFoundError: The folder has no vocabulary; transformers would make up one.
    """
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise FileNotFoundError(f"{folder / 'tokenizer.json'} is missing: put the published tokenizer there")
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    for name in ("is_local", "local_files_only"):  # transformers would save how it was read
        tokenizer.init_kwargs.pop(name, None)
    return tokenizer


def pad_token_ids(
    sequences: Sequence[Sequence[int]], pad_id: int, left: bool, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return token ids and attention mask, (B, L) each, padded on the left or on the right."""
    longest = max(map(len, sequences))
    ids = torch.full((len(sequences), longest), pad_id, device=device)
    mask = torch.zeros(len(sequences), longest, dtype=torch.bool, device=device)
    for row, tokens in enumerate(sequences):
        span = slice(longest - len(tokens), None) if left else slice(len(tokens))
        ids[row, span] = torch.tensor(tokens, device=device)
        mask[row, span] = True
    return ids, mask


def last_tokens_mask(counts: Sequence[int], length: int) -> Tensor:
    """Return the mask of the last ``counts[i]`` tokens of row i, (B, length) bool, on the CPU."""
    return torch.arange(length) >= length - torch.tensor(counts)[:, None]


def masked_indices(mask: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return row and column indices of the true entries of ``mask`` (B, T), on ``device``.

    The mask should be on the CPU: ``nonzero`` on a CUDA mask forces a device sync, because the size of its result
    depends on the values.
    """
    row, column = mask.nonzero(as_tuple=True)
    return row.to(device, non_blocking=True), column.to(device, non_blocking=True)


def next_token_loss(states: Tensor, ids: Tensor, loss_mask: Tensor, head: nn.Module) -> Loss:
    """Return the cross-entropy of tokens given the tokens before them.

    Args:
        states: Last hidden states (B, L, D).
        ids: Token ids (B, L), on the same device.
        loss_mask: Tokens with a loss, (B, L) bool; see :func:`masked_indices`.
        head: Maps last hidden states to logits; applied to positions with a loss only.
    """
    row, column = masked_indices(loss_mask[:, 1:], states.device)
    value = F.cross_entropy(head(states[row, column]).float(), ids[row, column + 1])
    return Loss(value, len(row))
