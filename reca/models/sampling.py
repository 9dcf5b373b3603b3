"""Sampling that all families share: classifier-free guidance and greedy decoding."""

from collections.abc import Callable

import torch
from torch import Tensor


def classifier_free_guidance(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Return ``unconditional + scale * (conditional - unconditional)`` (Ho and Salimans, arXiv 2207.12598).

    ``scale`` is 1 without guidance, as in diffusers; the paper's w is ``scale - 1``.
    """
    return unconditional + scale * (conditional - unconditional)


def greedy_decode(
    logits: Tensor, next_logits: Callable[[Tensor], Tensor], eos_id: int, max_tokens: int
) -> list[list[int]]:
    """Return the most likely tokens per row, up to its end token or ``max_tokens``.

    Args:
        logits: Logits of the first token, (B, V).
        next_logits: Maps the newest tokens (B,) to the logits of the tokens after them, (B, V).
        eos_id: End token; it is left out of the result.
        max_tokens: Most tokens of a row.
    """
    tokens = [logits.argmax(dim=-1)]
    ended = tokens[0] == eos_id
    while len(tokens) < max_tokens and not bool(ended.all()):
        tokens.append(next_logits(tokens[-1]).argmax(dim=-1))
        ended = ended | (tokens[-1] == eos_id)
    rows = torch.stack(tokens, dim=1).tolist()
    return [row[: row.index(eos_id)] if eos_id in row else row for row in rows]
