"""Stage 1 of the recipe of ``janus_tiny``: understand scenes and sentences, and align both in the gist states.

The four losses are those of :mod:`tools.tiny_bases.understanding`; the vision tower is trained by all of them.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reca.models.base import Semantic
from reca.models.janus.model import Janus
from reca.training.losses import SIMPLE, TEMPLATES
from tools.tiny_bases.probes import Probes
from tools.tiny_bases.scene_labels import random_statement, to_labels
from tools.tiny_bases.training import Report, one_cycle, pixels, update
from tools.tiny_bases.understanding import LabeledScenes, weighted_question_loss


@dataclass(frozen=True)
class UnderstandingRecipe:
    """Steps and sizes of the stage."""

    tag_steps: int = 1500
    joint_steps: int = 3000
    batch_size: int = 64
    refine_steps: int = 1200
    """Further joint steps, in which the gists also learn all colors of kinds that appear in several."""
    questions_per_step: int = 32
    practice_steps: int = 3500
    """Steps of answers alone, by the layers above the gists."""
    practice_questions: int = 64
    learning_rate: float = 2e-3
    statements: int = 60_000


def train(
    model: Janus, probes: Probes, data: LabeledScenes, recipe: UnderstandingRecipe, seed: int, report: Report
) -> None:
    """Train the vision tower and the language model; the generation parts are unchanged."""
    vision, generator = model.network.model.vision_model, torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    model.network.model.vqmodel.requires_grad_(False)
    weights = [*vision.parameters(), *probes.patch.parameters()]
    optimizer = torch.optim.AdamW(weights, recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    for step in range(recipe.tag_steps):
        rows = torch.randint(len(data.images), (recipe.batch_size,), generator=generator)
        patches = vision(pixel_values=pixels(data.images[rows])).last_hidden_state
        loss = probes.tag_loss(patches, data.tags.rows(rows))
        update(optimizer, loss, weights, one_cycle(step, recipe.tag_steps, recipe.learning_rate))
        report(step + 1, recipe.tag_steps, f"tags {loss.item():.3f}")

    for steps, rate, color_sets in (
        (recipe.joint_steps, recipe.learning_rate, False),
        (recipe.refine_steps, recipe.learning_rate / 2, True),
    ):
        train_jointly(model, probes, data, recipe, seed, report, steps=steps, rate=rate, color_sets=color_sets)
    train_answers(model, data, recipe, seed, report)


def train_jointly(
    model: Janus,
    probes: Probes,
    data: LabeledScenes,
    recipe: UnderstandingRecipe,
    seed: int,
    report: Report,
    *,
    steps: int,
    rate: float,
    color_sets: bool,
) -> None:
    """Train on the four losses together; ``color_sets`` adds a fifth."""
    rng, generator = random.Random(f"join-{seed}-{color_sets}"), torch.Generator().manual_seed(seed)
    sentences, facts = zip(*(random_statement(rng) for _ in range(recipe.statements)), strict=True)
    sentence_labels = to_labels(facts)
    generation = ("generation_", "vqmodel")
    weights = [p for name, p in model.named_parameters() if not any(part in name for part in generation)]
    weights += list(probes.parameters())
    optimizer = torch.optim.AdamW(weights, rate, betas=(0.9, 0.98), weight_decay=0.01)
    for step in range(steps):
        rows = torch.randint(len(data.images), (recipe.batch_size,), generator=generator)
        lines = torch.randint(len(sentences), (recipe.batch_size,), generator=generator)
        images = pixels(data.images[rows])
        patches = model.network.model.vision_model(pixel_values=images).last_hidden_state
        prompts = [TEMPLATES[rng.randrange(SIMPLE)] for _ in rows]
        image_gists = model.gist_states(model.prompt_embeds(prompts, Semantic(model.network.model.aligner(patches))))
        texts = [data.captions[row] for row in rows] + [sentences[line] for line in lines]
        caption_gists, sentence_gists = model.gist_states(model.prompt_embeds(texts)).chunk(2)
        image_labels, text_labels = data.labels.rows(rows), sentence_labels.rows(lines)
        loss = 0.5 * probes.tag_loss(patches, data.tags.rows(rows))
        loss = loss + probes.gist_loss(image_gists, image_labels) + probes.gist_loss(sentence_gists, text_labels)
        loss = loss + probes.alignment_loss(image_gists, caption_gists)
        if color_sets:
            loss = loss + 4 * (
                probes.color_set_loss(image_gists, image_labels) + probes.color_set_loss(sentence_gists, text_labels)
            )
        answers = weighted_question_loss(model, data, rows[: recipe.questions_per_step], rng)
        update(optimizer, loss + answers, weights, one_cycle(step, steps, rate))
        report(step + 1, steps, f"gists {loss.item():.3f} answers {answers.item():.3f}")


def train_answers(model: Janus, data: LabeledScenes, recipe: UnderstandingRecipe, seed: int, report: Report) -> None:
    """Train answers alone: the layers up to the gists are frozen, those above learn to put them into words."""
    language_model, generator = model.network.model.language_model, torch.Generator().manual_seed(seed)
    rng = random.Random(f"practice-{seed}")
    model.requires_grad_(False)
    weights = [*language_model.layers[model.gist_layer :].parameters(), *language_model.norm.parameters()]
    weights += model.network.lm_head.parameters()
    for parameter in weights:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(weights, recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    for step in range(recipe.practice_steps):
        rows = torch.randint(len(data.images), (recipe.practice_questions,), generator=generator)
        loss = weighted_question_loss(model, data, rows, rng)
        update(optimizer, loss, weights, one_cycle(step, recipe.practice_steps, recipe.learning_rate))
        report(step + 1, recipe.practice_steps, f"answers {loss.item():.3f}")


def states(model: Janus, texts: Sequence[str], semantic: Semantic | None = None) -> Tensor:
    """Return the gist states (B, 8, D) of captions, or of images with templates."""
    return model.gist_states(model.prompt_embeds(texts, semantic))
