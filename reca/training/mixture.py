"""The weighted sum of the three losses: L = λ_RecA L_RecA + λ_t2i L_t2i + λ_i2t L_i2t (paper, equation 3).

The two image losses share the images of a step in proportion to their weights, so that RecA (1 : 1) and its
control (0 : 1) see equally many images and cost equally much. Dialogues come on top of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Kind = Literal["reconstruction", "text_to_image", "understanding"]
KINDS: tuple[Kind, ...] = ("reconstruction", "text_to_image", "understanding")


@dataclass(frozen=True)
class Mixture:
    """How one optimizer step is put together."""

    counts: Mapping[Kind, int]
    """Samples of each kind in a step; a kind with weight 0 has none."""
    shares: Mapping[Kind, float]
    """λ: the factor of each kind's mean loss in the sum. The shares of the two image losses add up to 1."""

    @property
    def images(self) -> int:
        """Images drawn for the two image losses together."""
        return self.counts["reconstruction"] + self.counts["text_to_image"]

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds that are trained, in a fixed order."""
        return tuple(kind for kind in KINDS if self.counts[kind])


def mix(weights: Mapping[Kind, float], global_batch_size: int) -> Mixture:
    """Turn weights into samples and shares.

    ``reconstruction`` and ``text_to_image`` split ``global_batch_size`` images in proportion to their weights.
    ``understanding`` is relative to both of them together: 0.25 means a dialogue for every fourth image, on top,
    and λ_i2t = 0.25. With both image weights 0, only the dialogues remain.

    Raises:
        ValueError: A weight is negative, all are 0, or a positive one is too small to get a single sample.
    """
    if min(weights.values()) < 0 or not any(weights.values()):
        raise ValueError(f"train.mixture must be non-negative with at least one positive weight, got {dict(weights)}")
    total = weights["reconstruction"] + weights["text_to_image"]
    shares: dict[Kind, float] = {
        "reconstruction": weights["reconstruction"] / total if total else 0.0,
        "text_to_image": weights["text_to_image"] / total if total else 0.0,
        "understanding": weights["understanding"],
    }
    counts: dict[Kind, int] = {
        "reconstruction": round(shares["reconstruction"] * global_batch_size),
        "understanding": round(shares["understanding"] * global_batch_size),
    }
    counts["text_to_image"] = global_batch_size - counts["reconstruction"] if total else 0
    for kind in KINDS:
        if weights[kind] > 0 and not counts[kind]:
            raise ValueError(
                f"train.mixture.{kind}={weights[kind]} gets no sample out of train.global_batch_size="
                f"{global_batch_size}; raise one of the two, or set the weight to 0"
            )
    return Mixture(counts, shares)
