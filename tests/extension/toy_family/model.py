"""Toy: the smallest family that passes the contract, a linear flow over pooled pixels."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reca.models.base import (
    RECONSTRUCTION_PROMPT,
    Cacheable,
    Dialogue,
    Images,
    ImageSpec,
    Loss,
    Semantic,
    Target,
    UnifiedModel,
)
from reca.models.sampling import Sampling
from reca.models.weights import load_strictly, read_json, read_weights, write_weights
from reca.runtime.files import atomic_folder, write_text
from reca.runtime.seeding import SampleRng, derive_seed

WIDTH, GRID, VOCABULARY, CONTEXT = 16, 4, 64, 64
LATENTS = 3 * GRID * GRID
ANSWERS = ("red", "blue", "two", "three")


class Toy(UnifiedModel):
    """An understanding encoder (pooled pixels, one linear layer) and a flow with one linear layer."""

    family = "toy"
    encoder_prefixes: Mapping[Cacheable, tuple[str, ...]] = {"semantic": ("vision.",), "target": ()}

    def __init__(self, options: Mapping[str, Any]) -> None:
        super().__init__()
        size = options["generation_size"] or 24
        self.spec = ImageSpec.square(options["understanding_size"] or 24, size, GRID * GRID, GRID * GRID)
        self.train_vision: bool = options["train_vision"]
        self.cacheable = frozenset({"target"} if self.train_vision else {"target", "semantic"})
        self.prompt_dropout = options["prompt_dropout"]
        self.vision = nn.Linear(3, WIDTH)
        self.words = nn.Embedding(VOCABULARY, WIDTH)
        self.flow = nn.Linear(LATENTS + WIDTH + 1, LATENTS)
        self.answers = nn.Linear(2 * WIDTH, len(ANSWERS))

    @classmethod
    def load(cls, checkpoint: Path, options: Mapping[str, Any], device: torch.device | None) -> Self:
        """See :meth:`UnifiedModel.load`; the layout is ``config.json`` and ``model.safetensors``."""
        if not (checkpoint / "config.json").is_file():
            raise FileNotFoundError(f"{checkpoint / 'config.json'} is missing: {checkpoint} is not a toy checkpoint")
        read_json(checkpoint / "config.json")
        model = cls(options)
        load_strictly(model, read_weights(checkpoint / "model.safetensors"), checkpoint)
        return model.to_eval(device)

    def save_official(self, path: Path, for_scripts: bool = False) -> None:
        """See :meth:`UnifiedModel.save_official`."""
        with atomic_folder(path) as folder:
            write_text(folder / "config.json", json.dumps({"family": self.family}))
            write_weights(self.state_dict(), folder)

    def trainable(self) -> Iterable[str]:
        """Return all parameters but those of the vision encoder, unless ``train_vision``."""
        names = [name for name, _ in self.named_parameters()]
        return [name for name in names if self.train_vision or not name.startswith("vision.")]

    def encode_semantic(self, images: Images, rng: SampleRng | None = None) -> Semantic:
        """Return (B, 16, D): one embedding per cell of a 4 x 4 grid."""
        cells = F.adaptive_avg_pool2d(images, GRID).flatten(2).transpose(1, 2)  # (B, 3, H, W) -> (B, 16, 3)
        with torch.set_grad_enabled(self.train_vision and torch.is_grad_enabled()):
            return Semantic(self.vision(cells))

    def encode_target(self, images: Images, rng: SampleRng) -> Target:
        """Return the pooled pixels, (B, 3, 4, 4)."""
        return Target(F.adaptive_avg_pool2d(images, GRID).detach())

    def reconstruction_loss(self, semantic: Semantic, prompts: Sequence[str], target: Target, rng: SampleRng) -> Loss:
        """See :meth:`UnifiedModel.reconstruction_loss`."""
        return self._loss(semantic.embeds.mean(1) + self._text(prompts), target, rng)

    def text_to_image_loss(self, prompts: Sequence[str], target: Target, rng: SampleRng) -> Loss:
        """See :meth:`UnifiedModel.text_to_image_loss`."""
        return self._loss(self._text(prompts), target, rng)

    def understanding_loss(self, images: Images, dialogues: Sequence[Dialogue], rng: SampleRng) -> Loss:
        """Return the cross-entropy of the answers, which have one word."""
        labels = torch.tensor([ANSWERS.index(dialogue.answer) for dialogue in dialogues])
        return Loss(F.cross_entropy(self._logits(images, [d.question for d in dialogues]), labels), len(dialogues))

    def generate(self, prompts: Sequence[str], sampling: Sampling, rng: SampleRng) -> Tensor:
        """See :meth:`UnifiedModel.generate`."""
        return self._sample(self._text(prompts), sampling, rng)

    def reconstruct(self, semantic: Semantic, sampling: Sampling, rng: SampleRng) -> Tensor:
        """See :meth:`UnifiedModel.reconstruct`."""
        condition = semantic.embeds.mean(1) + self._text([RECONSTRUCTION_PROMPT] * len(semantic.embeds))
        return self._sample(condition, sampling, rng)

    @torch.no_grad()
    def answer(self, images: Images, questions: Sequence[str]) -> list[str]:
        """See :meth:`UnifiedModel.answer`."""
        return [ANSWERS[index] for index in self._logits(images, questions).argmax(-1).tolist()]

    def _logits(self, images: Images, questions: Sequence[str]) -> Tensor:
        return self.answers(torch.cat([self.encode_semantic(images).embeds.mean(1), self._text(questions)], -1))

    def _text(self, prompts: Sequence[str]) -> Tensor:
        rows = []
        for prompt in prompts:
            ids = [derive_seed(word) % VOCABULARY for word in prompt.split()]
            if len(ids) > CONTEXT:
                raise ValueError(f"a prompt has {len(ids)} tokens; the context has {CONTEXT}")
            rows.append(self.words(torch.tensor(ids)).mean(0))
        return torch.stack(rows)  # (B, D)

    def _loss(self, condition: Tensor, target: Target, rng: SampleRng) -> Loss:
        drop_mask = self.condition_dropout_mask(rng)
        if drop_mask is not None:
            condition = condition.masked_fill(drop_mask[:, None], 0.0)
        x_0 = target.values.flatten(1)
        t, noise = rng.uniform("t", (1,)), rng.normal("noise", (LATENTS,))
        x_t = (1 - t) * x_0 + t * noise
        velocity = self.flow(torch.cat([x_t, condition, t], -1))
        return Loss(F.mse_loss(velocity, noise - x_0), len(x_0) * GRID * GRID)

    @torch.no_grad()
    def _sample(self, condition: Tensor, sampling: Sampling, rng: SampleRng) -> Tensor:
        sampling.refuse_other_sizes(self.spec.generation_size)
        x, steps = rng.normal("noise", (LATENTS,)), sampling.num_steps or 4
        for step in range(steps):
            t = torch.full((len(x), 1), 1 - step / steps)
            x = x - self.flow(torch.cat([x, condition, t], -1)) / steps
        latents = x.view(-1, 3, GRID, GRID).clamp(-1, 1)
        return F.interpolate(latents, size=self.spec.generation_size, mode="nearest")
