"""From what was read of some samples to their loss."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from reca.data.packed import to_device
from reca.models.base import Dialogue, Loss, Semantic, Target, UnifiedModel
from reca.models.prompts import choose_templates
from reca.runtime.seeding import SampleRng, derive_seed
from reca.training.mixture import Kind


@dataclass(frozen=True)
class Sources:
    """What the losses of some samples are computed from, on the CPU."""

    seeds: list[int]
    seen: Any
    """Images to be understood, or their stored :class:`Semantic`; ``None`` where only a caption is read."""
    drawn: Any = None
    """Images to be drawn, or their stored :class:`Target`; ``None`` where a question is answered."""
    captions: Sequence[str] = ()
    """Where images are drawn from them."""
    dialogues: Sequence[Dialogue] = ()
    """Where questions are answered."""


@dataclass(frozen=True)
class Losses:
    """The losses of a model, as training asks for them."""

    model: UnifiedModel
    device: torch.device
    """Where the model is."""
    templates: int | None
    """Prompt templates that are chosen from; ``None``: all."""
    lower: bool
    """The losses are computed under bfloat16 autocast."""

    def of(self, kind: Kind, sources: Sources) -> Loss:
        """The mean loss of some samples."""
        rng = SampleRng(sources.seeds)
        if kind == "understanding":
            images = to_device(sources.seen, self.device)
            with self._precision():
                return self.model.understanding_loss(images, sources.dialogues, rng)
        target = self._target(sources)
        if kind == "text_to_image":
            with self._precision():
                return self.model.text_to_image_loss(sources.captions, target, rng)
        prompts, semantic = choose_templates(sources.seeds, self.templates), self._semantic(sources, rng)
        with self._precision():
            return self.model.reconstruction_loss(semantic, prompts, target, rng)

    def _precision(self) -> torch.autocast:
        """Not of targets: a code that is rounded to its neighbour would be another one.

        Without autocast's cache, which keeps the rounded copy of every weight until the pass ends: of sharded
        parameters and recomputed blocks no device is to hold all.
        """
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.lower, cache_enabled=False)

    def _semantic(self, sources: Sources, rng: SampleRng) -> Semantic:
        seen = to_device(sources.seen, self.device)
        if isinstance(seen, Semantic):
            return seen
        with self._precision():  # an encoder that trains is part of the pass
            return self.model.encode_semantic(seen, rng)

    def _target(self, sources: Sources) -> Target:
        drawn = to_device(sources.drawn, self.device)
        if isinstance(drawn, Target):
            return drawn
        # Its own stream: whether the target is cached must not move the draws of the loss.
        rng = SampleRng([derive_seed(seed, "target") for seed in sources.seeds])
        return self.model.encode_target(drawn, rng)
