"""Sampling that all families share: its settings, classifier-free guidance and greedy decoding."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Renorm = Literal["global", "channel", "text_channel"]
"""Scope in which BAGEL shortens a guided velocity to the length of the unguided one: the whole image, every token, or
every token after text guidance but before image guidance."""


@dataclass(frozen=True)
class Sampling:
    """Settings of image generation, under the names that diffusers uses."""

    guidance_scale: float
    """Weight of classifier-free guidance; 1 disables it."""
    temperature: float = 1.0
    num_steps: int | None = None
    """Sampler steps; ``None``: the family's default. Autoregressive families ignore it."""
    image_guidance_scale: float = 1.0
    """Second guidance weight, towards the source image of an edit; 1 disables it."""
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    """BAGEL guides where t, after its shift, is in (first, second]."""
    guidance_renorm: Renorm = "global"
    guidance_renorm_min: float = 0.0
    """Smallest factor by which BAGEL shortens a guided velocity."""
    guidance_schedule: Literal["constant", "linear"] = "constant"
    """Harmon's guidance is the same in every step, or rises from 1 with the share of the image that is drawn."""
    size: tuple[int, int] | None = None
    """Height and width in pixels, where a family draws other shapes; ``None``: the family's square."""

    def __post_init__(self) -> None:
        steps = 1 if self.num_steps is None else self.num_steps
        if not (0 <= self.guidance_scale < math.inf and 0 < self.temperature < math.inf and steps > 0):
            raise ValueError(f"guidance_scale must be at least 0, temperature and num_steps above 0: {self}")

    def refuse_other_sizes(self, side: int) -> None:
        """Raise a ``ValueError`` if another size than the family's only one, a square, is asked for."""
        if self.size not in (None, (side, side)):
            raise ValueError(f"images of {side} x {side} pixels only can be drawn, not {self.size}")


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
