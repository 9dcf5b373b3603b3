"""The composition of an optimizer step: samples and λ of each loss."""

from collections.abc import Mapping
from dataclasses import dataclass

from reca.training.losses import KINDS, Kind


@dataclass(frozen=True)
class Mixture:
    """Composition of an optimizer step.

    Both image losses share the step's images in proportion to their weights, so that RecA (1 : 1) and its control
    (0 : 1) see equally many images and cost equally much. Dialogues are added to them.
    """

    counts: Mapping[Kind, int]
    """Samples per loss in a step; 0 for a loss with weight 0."""
    loss_weights: Mapping[Kind, float]
    """λ of equation 3, normalised so that λ_RecA + λ_t2i = 1."""

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Losses with a positive weight, in the order of :data:`KINDS`."""
        return tuple(kind for kind in KINDS if self.counts[kind])


def build_mixture(weights: Mapping[Kind, float], global_batch_size: int) -> Mixture:
    """Turn the weights of ``train.mixture`` into sample counts and λ.

    ``reconstruction`` and ``text_to_image`` split ``global_batch_size`` images in proportion to their weights.
    ``understanding`` is relative to both together: 0.25 means one dialogue for every fourth image, in addition, and
    λ_i2t = 0.25. With both image weights 0, only dialogues remain.

    Raises:
        ValueError: A weight is negative, all are 0, or a positive one is too small to get a single sample.
    """
    if min(weights.values()) < 0 or not any(weights.values()):
        raise ValueError(f"train.mixture must be non-negative with at least one positive weight, got {dict(weights)}")
    total = weights["reconstruction"] + weights["text_to_image"]
    loss_weights: dict[Kind, float] = {
        "reconstruction": weights["reconstruction"] / total if total else 0.0,
        "text_to_image": weights["text_to_image"] / total if total else 0.0,
        "understanding": weights["understanding"],
    }
    counts: dict[Kind, int] = {
        "reconstruction": round(loss_weights["reconstruction"] * global_batch_size),
        "understanding": round(loss_weights["understanding"] * global_batch_size),
    }
    counts["text_to_image"] = global_batch_size - counts["reconstruction"] if total else 0
    for kind in KINDS:
        if weights[kind] > 0 and not counts[kind]:
            raise ValueError(
                f"train.mixture.{kind}={weights[kind]} gets no sample out of train.global_batch_size="
                f"{global_batch_size}; raise one of the two, or set the weight to 0"
            )
    return Mixture(counts, loss_weights)
