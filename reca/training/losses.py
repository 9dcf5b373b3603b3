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

A template says nothing about the image; it only has to be a request that understanding models answer in detail. Many
wordings keep the model from tying reconstruction to a single phrase. The list, ``losses.txt``, is our own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import torch

from reca.data.embeddings import pin_memory, to_device
from reca.models.base import Dialogue, Loss, Semantic, Target, UnifiedModel
from reca.runtime.seeding import SampleRng, derive_seed

Kind = Literal["reconstruction", "text_to_image", "understanding"]
KINDS: tuple[Kind, ...] = ("reconstruction", "text_to_image", "understanding")
TEMPLATES = tuple(Path(__file__).with_suffix(".txt").read_text().splitlines())
"""Prompts of L_RecA."""
SIMPLE = 8
"""Number of templates at the start of the list in plain lower-case words, for tiny models with a small vocabulary."""


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
    """``True`` if the batch only takes part in the collectives of a pass, and must not count."""

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


def choose_templates(seeds: Sequence[int], count: int | None = None) -> list[str]:
    """Return one template per seed; the same seed gives the same template in every process.

    Args:
        seeds: One seed per sample.
        count: Number of templates to choose from, the first of the list; ``None``: all.

    Raises:
        ValueError: ``count`` is not between 1 and the number of templates.
    """
    limit = len(TEMPLATES) if count is None else count
    if not 1 <= limit <= len(TEMPLATES):
        raise ValueError(f"train.prompt_templates is {limit}; there are {len(TEMPLATES)} templates: choose 1 to that")
    return [TEMPLATES[derive_seed("template", seed) % limit] for seed in seeds]


def _encode_target(model: UnifiedModel, batch: TrainingBatch) -> Target:
    if isinstance(batch.target, Target):
        return batch.target
    # A separate random stream, so that caching targets does not change the noise of the loss.
    rng = SampleRng([derive_seed(seed, "target") for seed in batch.seeds])
    return model.encode_target(batch.target, rng)
