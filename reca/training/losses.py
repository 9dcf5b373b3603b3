"""The training objective of RecA (arXiv 2509.07295, section 3): one function for its three losses.

    L_RecA  = L(f_θ(concat(t_template, h_v)), I_gt)                                                 (equation 2)
    L_total = λ_RecA · L_RecA + λ_t2i · L_t2i + λ_i2t · L_i2t                                       (equation 3)

h_v are the embeddings of image I_gt from the model's own understanding encoder, t_template is a prompt such as
"describe the image in detail", f_θ is the model, and L is the loss with which its family generates images:

    Janus.reconstruction_loss     cross-entropy of the image's codes, autoregressively
    Showo.reconstruction_loss     cross-entropy of the masked codes
    Harmon.reconstruction_loss    diffusion loss of the masked latents
    Bagel.reconstruction_loss     flow matching of the latents
    OpenUni.reconstruction_loss   flow matching of the latents

L_t2i is the same loss given a caption instead of h_v; L_i2t is the cross-entropy of an answer given image and question.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import torch

from reca.data.packed import pin_memory, to_device
from reca.models.base import Dialogue, Loss, Semantic, Target, UnifiedModel
from reca.runtime.seeding import SampleRng, derive_seed

Kind = Literal["reconstruction", "text_to_image", "understanding"]
KINDS: tuple[Kind, ...] = ("reconstruction", "text_to_image", "understanding")


@dataclass(frozen=True)
class TrainingBatch:
    """Inputs of a loss for B samples."""

    kind: Kind
    seeds: Sequence[int]
    """Seeds of the samples' noise, B."""
    condition: Any = None
    """Images to understand, or their stored h_v (:class:`Semantic`); ``None`` for text-to-image."""
    target: Any = None
    """Images to generate, or their stored codes or latents (:class:`Target`); ``None`` for understanding."""
    prompts: Sequence[str] = ()
    """Templates for reconstruction, captions for text-to-image."""
    dialogues: Sequence[Dialogue] = ()
    """Questions and answers for understanding."""
    is_padding: bool = False
    """``True`` if the batch only takes part in the collectives of sharded parameters, and must not count."""

    def pin_memory(self, device: torch.device) -> Self:
        """Return the batch in page-locked memory if ``device`` is a GPU."""
        return self._map(pin_memory, device)

    def to(self, device: torch.device) -> Self:
        """Return the batch on a device."""
        return self._map(to_device, device)

    def _map(self, function: Callable[[Any, torch.device], Any], device: torch.device) -> Self:
        tensors = {"condition": self.condition, "target": self.target}
        return replace(self, **{name: function(value, device) for name, value in tensors.items() if value is not None})


def compute_loss(model: UnifiedModel, batch: TrainingBatch, autocast: torch.autocast) -> Loss:
    """Return L_RecA, L_t2i or L_i2t, by ``batch.kind``, as a mean over the batch's targets.

    Args:
        model: On the device of the batch.
        batch: See :meth:`TrainingBatch.to`.
        autocast: Context of the forward pass. Targets are encoded outside, because a code or latent that is rounded
            to bfloat16 is another target.
    """
    rng = SampleRng(batch.seeds)
    if batch.kind == "understanding":
        with autocast:
            loss = model.understanding_loss(batch.condition, batch.dialogues, rng)
    else:
        target = _encode_target(model, batch)
        with autocast:
            if batch.kind == "text_to_image":
                loss = model.text_to_image_loss(batch.prompts, target, rng)
            else:
                h_v = batch.condition
                if not isinstance(h_v, Semantic):
                    h_v = model.encode_semantic(h_v, rng)
                loss = model.reconstruction_loss(h_v, batch.prompts, target, rng)
    return replace(loss, n_targets=0) if batch.is_padding else loss


def _encode_target(model: UnifiedModel, batch: TrainingBatch) -> Target:
    if isinstance(batch.target, Target):
        return batch.target
    # A separate random stream, so that caching targets does not change the noise of the loss.
    rng = SampleRng([derive_seed(seed, "target") for seed in batch.seeds])
    return model.encode_target(batch.target, rng)


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
    def images(self) -> int:
        """Images of both image losses in a step."""
        return self.counts["reconstruction"] + self.counts["text_to_image"]

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
