"""Masked image tokens: masks of training, and sampling of an image in a few steps (arXiv 2202.04200).

Codes run from 0 to K - 1; the number K means "hidden".

    training   mask ratio = cos(pi/2 * u), u ~ U(0, 1); at least one code is hidden
    sampling   step s of S: sample all hidden codes, keep the most confident, hide a share cos(pi/2 * s/S) again
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from reca.runtime.seeding import SampleRng

MIN_PROBABILITY = 1e-20
"""Lower bound under logarithms, as in the official sampler."""


def mask_ratio(progress: Tensor) -> Tensor:
    """Share of hidden codes at a progress in [0, 1]: the cosine schedule (section 3.3)."""
    return torch.cos(progress * (math.pi / 2))


def random_mask(rng: SampleRng, length: int) -> Tensor:
    """Draw the hidden codes of training samples: (B, length) bool.

    Draws "mask_ratio" (B,), then "mask_order" (B, length), both uniform. Their use follows the official code to the
    letter: a code is hidden if its entry of ``argsort(mask_order)`` is below the number to hide.
    """
    ratio = mask_ratio(rng.uniform("mask_ratio"))
    count = (ratio * length).round().clamp(min=1)
    return rng.uniform("mask_order", (length,)).argsort(dim=-1) < count[:, None]


@torch.no_grad()
def sample_codes(
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
        codes: (B, T) int64; ``codebook`` where hidden. Others are kept.
        codebook: K.
        num_steps: Steps S; each is one call of ``predict``.
        temperature: Scale of the noise on the confidences. It shrinks with every step, by 1 - s/S each time.
            Codes themselves are sampled at temperature 1.
        rng: Draws "codes" and "confidence" at every step.

    Returns:
        Codes (B, T), none hidden.
    """
    length, sampled = codes.shape[1], codes
    for step in range(1, num_steps + 1):
        hidden = codes == codebook
        logits = predict(codes).float()
        sampled = torch.where(hidden, rng.categorical("codes", logits), codes)
        progress = step / num_steps
        temperature *= 1 - progress
        noise = rng.uniform("confidence", (length,)).to(logits.device)
        if step == num_steps:
            break
        probability = logits.softmax(dim=-1).gather(-1, sampled[..., None])[..., 0]
        gumbel = -torch.log((-torch.log(noise.clamp(min=MIN_PROBABILITY))).clamp(min=MIN_PROBABILITY))
        confidence = torch.log(probability.clamp(min=MIN_PROBABILITY)) + temperature * gumbel
        confidence = confidence.masked_fill(~hidden, torch.inf)
        scheduled = math.floor(length * float(mask_ratio(torch.tensor(progress))))
        count = (hidden.sum(dim=-1, keepdim=True) - 1).clamp(max=scheduled).clamp(min=1)
        threshold = confidence.sort(dim=-1).values.gather(-1, count.clamp(max=length - 1))
        codes = sampled.masked_fill(hidden & (confidence < threshold), codebook)
    return sampled
