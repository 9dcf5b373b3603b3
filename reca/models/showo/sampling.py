"""Masked image tokens: which are hidden in training, and how an image is drawn in a few steps (arXiv 2202.04200).

Codes run from 0 to K - 1; the number K stands for "hidden".

    training   share hidden = cos(pi/2 * u), u ~ U(0, 1); at least one
    drawing    step s of S: draw all hidden codes, keep the surest, hide cos(pi/2 * s/S) of them again
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from reca.runtime.seeding import SampleRng

TINY = 1e-20
"""Logarithms are taken of at least this, as in the official sampler."""


def hidden_share(progress: Tensor) -> Tensor:
    """Share of the codes that is hidden, for progress in [0, 1]: the cosine schedule (section 3.3)."""
    return torch.cos(progress * (math.pi / 2))


def random_mask(rng: SampleRng, length: int) -> Tensor:
    """Which of ``length`` codes are hidden in a training sample: (B, length) bool.

    Draws "mask_ratio" (B,), then "mask_order" (B, length), both uniform. Their use follows the official code to the
    letter: a code is hidden if its entry of ``argsort(mask_order)`` is below the number to hide.
    """
    share = hidden_share(rng.uniform("mask_ratio"))
    number = (share * length).round().clamp(min=1)
    return rng.uniform("mask_order", (length,)).argsort(dim=-1) < number[:, None]


@torch.no_grad()
def draw_codes(
    predict: Callable[[Tensor], Tensor],
    codes: Tensor,
    codebook: int,
    num_steps: int,
    temperature: float,
    rng: SampleRng,
) -> Tensor:
    """Fill in hidden codes step by step.

    Args:
        predict: Codes (B, T) -> logits (B, T, K), guidance included.
        codes: (B, T) int64; ``codebook`` where hidden. Others stay as they are.
        codebook: K.
        num_steps: Steps S; each is one call of ``predict``.
        temperature: Of the noise on the choice of what is kept. It shrinks with every step, by 1 - s/S each time.
            Codes themselves are drawn at temperature 1.
        rng: Draws "codes" and "confidence" at every step.

    Returns:
        Codes (B, T), none hidden.
    """
    length, drawn = codes.shape[1], codes
    for step in range(1, num_steps + 1):
        hidden = codes == codebook
        logits = predict(codes).float()
        drawn = torch.where(hidden, rng.categorical("codes", logits), codes)
        progress = step / num_steps
        temperature *= 1 - progress
        noise = rng.uniform("confidence", (length,)).to(logits.device)
        if step == num_steps:
            break
        chosen = logits.softmax(dim=-1).gather(-1, drawn[..., None])[..., 0]
        gumbel = -torch.log((-torch.log(noise.clamp(min=TINY))).clamp(min=TINY))
        confidence = torch.log(chosen.clamp(min=TINY)) + temperature * gumbel
        confidence = confidence.masked_fill(~hidden, torch.inf)
        wanted = math.floor(length * float(hidden_share(torch.tensor(progress))))
        number = (hidden.sum(dim=-1, keepdim=True) - 1).clamp(max=wanted).clamp(min=1)
        threshold = confidence.sort(dim=-1).values.gather(-1, number.clamp(max=length - 1))
        codes = drawn.masked_fill(hidden & (confidence < threshold), codebook)
    return drawn
