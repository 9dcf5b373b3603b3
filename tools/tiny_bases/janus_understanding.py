"""Stage 1 of the long recipe: understand scenes and sentences, and align both in the gist states.

Four losses act together (docs/decisions.md):

1. patch tags on the vision tower: the shape in each patch, learnt in a few hundred steps;
2. probes on the gist states, shared by image and text: gist k has the facts of the k-th kind of shape (count, color,
   position), pairs of gists their relation;
3. alignment: an image and its full caption agree gist by gist (cosine) and as wholes (InfoNCE, CLIP);
4. answers: the language model's own words, on questions about the image.

The probes are not saved with the base; the model card gives their held-out accuracy next to the answers'.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from reca.data.synthetic.scenes import Scene, SceneQuestion, full_caption, questions
from reca.models.base import Semantic
from reca.models.janus.model import Janus
from reca.training.losses import SIMPLE, TEMPLATES
from tools.tiny_bases.evaluation import answer_scores, question_loss
from tools.tiny_bases.probes import Probes
from tools.tiny_bases.scene_labels import (
    UNLABELED,
    PatchTags,
    SceneLabels,
    caption_opening,
    patch_tags,
    random_statement,
    scene_facts,
    to_labels,
)
from tools.tiny_bases.training import Report, one_cycle, pixels, update


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


@dataclass(frozen=True)
class LabeledScenes:
    """Scenes to learn from, with labels, and a full caption and questions per scene."""

    images: Tensor
    """(N, 3, S, S) uint8"""
    labels: SceneLabels
    tags: PatchTags
    captions: Sequence[str]
    questions: Sequence[Sequence[SceneQuestion]]


def label(scenes: Sequence[Scene], images: Tensor, grid: int, seed: int) -> LabeledScenes:
    """Label scenes; one full caption and one set of questions each."""
    rng = random.Random(f"study-{seed}")
    captions = [caption_opening(rng) + full_caption(scene, rng) for scene in scenes]
    scene_questions = [questions(scene, rng) for scene in scenes]
    labels = to_labels([scene_facts(scene) for scene in scenes])
    return LabeledScenes(images, labels, patch_tags(scenes, grid), captions, scene_questions)


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


def weighted_question_loss(model: Janus, data: LabeledScenes, rows: Tensor, rng: random.Random) -> Tensor:
    """Loss on a question per scene: relations three times as often, questions that search by color twice."""
    times = {"relation": 3, "existence": 2, "shape": 2}
    choices = [
        [question for question in data.questions[row] for _ in range(times.get(question.kind, 1))] for row in rows
    ]
    return question_loss(model, data.images[rows], choices, rng)


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


@torch.no_grad()
def evaluate(model: Janus, probes: Probes, data: LabeledScenes, seed: int, batch: int = 250) -> dict[str, float]:
    """Held-out accuracy: the probes' (``probe_…``), alignment, and the model's own answers by kind of question."""
    rng = random.Random(f"examination-{seed}")
    images = pixels(data.images)
    blocks = torch.arange(len(images)).split(batch)

    def text_gists(texts: Sequence[str]) -> Tensor:
        return torch.cat([model.gist_states(model.prompt_embeds([texts[row] for row in block])) for block in blocks])

    image_gists = torch.cat(
        [
            model.gist_states(model.prompt_embeds([TEMPLATES[0]] * len(b), model.encode_semantic(images[b])))
            for b in blocks
        ]
    )
    caption_gists = text_gists(data.captions)
    sentences, facts = zip(*(random_statement(rng) for _ in range(len(images))), strict=True)
    scores = _probe_scores(probes, image_gists, data.labels, "image")
    scores |= _probe_scores(probes, text_gists(sentences), to_labels(facts), "text")
    wholes = [F.normalize(probes.whole(gists.flatten(1)), dim=-1) for gists in (image_gists, caption_gists)]
    retrieved = (wholes[0] @ wholes[1].T).argmax(1) == torch.arange(len(images))
    scores["retrieval_at_1"] = retrieved.float().mean().item()
    scores["cosine_matched"] = F.cosine_similarity(image_gists, caption_gists, dim=-1).mean().item()
    scores["cosine_mismatched"] = F.cosine_similarity(image_gists, caption_gists.roll(1, 0), dim=-1).mean().item()
    return scores | answer_scores(model, images, data.questions, batch)


def _probe_scores(probes: Probes, gists: Tensor, labels: SceneLabels, source: str) -> dict[str, float]:
    counts, colors = probes.count(gists).argmax(-1), probes.color(gists).argmax(-1)
    logits, targets = probes.relations(gists, labels)
    is_present, has_color = labels.counts > 0, labels.colors != UNLABELED
    return {
        f"probe_{source}_count": (counts == labels.counts)[is_present].float().mean().item(),
        f"probe_{source}_color": (colors == labels.colors)[has_color].float().mean().item(),
        f"probe_{source}_relation": (logits.argmax(-1) == targets).float().mean().item(),
    }
