"""Stage 3 of pre-training: draw, first from nothing, then from sparse captions until more of them gains nothing.

What understanding has learnt stays: the reading layers are frozen (they hold text and image in one space),
and answers are practised along the way because the upper layers serve both.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reca.data.scenes import Question
from reca.models.base import Dialogue, Target
from reca.models.janus import Janus
from reca.nn.random import SampleRng, derive_seed
from reca.pretraining.schedule import Report, one_cycle, pixels, update


@dataclass(frozen=True)
class Recipe:
    """Steps and sizes of the stage."""

    plain_steps: int = 2500
    """Steps that learn what images look like, without any condition."""
    caption_steps: int = 5000
    batch_size: int = 64
    questions_per_step: int = 16
    plain_learning_rate: float = 2e-3
    caption_learning_rate: float = 1.5e-3
    answer_weight: float = 0.25


@dataclass(frozen=True)
class Gallery:
    """Images to learn to draw: codes (N, T), one sparse caption each, and scenes for the questions."""

    codes: Tensor
    captions: Sequence[str]
    images: Tensor
    """(M, 3, S, S) uint8"""
    questions: Sequence[Sequence[Question]]


def prepare(model: Janus, captions: Sequence[str]) -> None:
    """Before the first step: codes that look alike start alike, and the gist states are centred on captions."""
    with torch.no_grad():
        model.network.model.generation_embeddings.weight.copy_(model.network.model.vqmodel.quantize.embedding.weight)
        blocks = [captions[start : start + 500] for start in range(0, 4000, 500)]
        model.centre_gists(torch.cat([model.gist_states(model.read(block)) for block in blocks]))


def train(model: Janus, gallery: Gallery, recipe: Recipe, seed: int, report: Report) -> None:
    """Teach the drawing layers in place; what :meth:`Janus.trainable` leaves out does not move.

    A model that draws already goes on from where it is: :func:`prepare` is for new ones.
    """
    model.train()
    wanted = set(model.trainable())
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in wanted)
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    total = recipe.plain_steps + recipe.caption_steps
    generator, rng = torch.Generator().manual_seed(seed), random.Random(f"drawing-{seed}")
    dropout = model.prompt_dropout
    for phase, steps, rate in (
        ("image only", recipe.plain_steps, recipe.plain_learning_rate),
        ("captions", recipe.caption_steps, recipe.caption_learning_rate),
    ):
        plain = phase == "image only"
        model.prompt_dropout = 1.0 if plain else dropout
        optimizer = torch.optim.AdamW(weights, rate, betas=(0.9, 0.95), weight_decay=0.01)
        for step in range(steps):
            rows = torch.randint(len(gallery.codes), (recipe.batch_size,), generator=generator)
            target = Target(gallery.codes[rows].long())
            prompts = [""] * len(rows) if plain else [gallery.captions[row] for row in rows]
            seeds = [derive_seed(seed, phase, step, row) for row in range(len(rows))]
            drawing = model.text_to_image_loss(prompts, target, SampleRng(seeds)).value
            answers = _answer_loss(model, gallery, recipe.questions_per_step, generator, rng)
            update(optimizer, drawing + recipe.answer_weight * answers, weights, one_cycle(step, steps, rate))
            text = f"{phase}: codes {drawing.item():.3f} answers {answers.item():.3f}"
            report(step + 1 + (0 if plain else recipe.plain_steps), total, text)
    model.prompt_dropout = dropout
    model.eval()


def _answer_loss(model: Janus, gallery: Gallery, count: int, generator: torch.Generator, rng: random.Random) -> Tensor:
    rows = torch.randint(len(gallery.images), (count,), generator=generator)
    chosen = [rng.choice(gallery.questions[row]) for row in rows]
    dialogues = [Dialogue(question.text, question.answer) for question in chosen]
    return model.understanding_loss(pixels(gallery.images[rows]), dialogues, SampleRng([])).value
