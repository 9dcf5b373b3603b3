"""Understanding in the long recipes: lessons and examination of all families, and the stage of those with queries.

Four losses act (docs/decisions.md):

1. tags on patches and words: the shape in each patch, and the facts of each noun of a sentence, at a lower layer;
2. probes on the states that condition drawing (Janus' gists, OpenUni's queries), shared by image and text: state k has
   the facts of the k-th kind of shape (count, color, position), pairs of states their relation;
3. alignment: an image and its full caption agree state by state (cosine) and as wholes (InfoNCE, CLIP);
4. answers: the language model's own words, on questions about the image.

The probes are not saved with the base; the model card gives their held-out accuracy next to the answers'.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from reca.data.synthetic.scenes import Scene, SceneQuestion, full_caption, questions
from reca.models.base import Semantic, UnifiedModel
from reca.training.losses import SIMPLE, TEMPLATES
from tools.tiny_bases.evaluation import answer_scores, question_loss
from tools.tiny_bases.optimization import optimize
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
    word_tags,
)
from tools.tiny_bases.training import pixels


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


def weighted_question_loss(model: UnifiedModel, data: LabeledScenes, rows: Tensor, rng: random.Random) -> Tensor:
    """Loss on a question per scene: relations three times as often, questions that search by color twice."""
    times = {"relation": 3, "existence": 2, "shape": 2}
    choices = [
        [question for question in data.questions[row] for _ in range(times.get(question.kind, 1))] for row in rows
    ]
    return question_loss(model, data.images[rows], choices, rng)


@dataclass(frozen=True)
class UnderstandingRecipe:
    """Steps and sizes of the stage."""

    tag_steps: int = 800
    tag_batch_size: int = 64
    joint_steps: int = 1100
    batch_size: int = 32
    questions: int = 16
    learning_rate: float = 2e-3
    refine_steps: int = 400
    """Further joint steps, a second cycle of the learning rate."""
    refine_learning_rate: float = 1e-3
    vision_steps: int = 600
    """Steps of the vision tower alone, through the frozen language model: text, and so drawing, do not change."""
    vision_batch_size: int = 48
    vision_learning_rate: float = 5e-4
    statements: int = 60_000


class Reader(Protocol):
    """What the stage needs of ``<family>_tiny.py``."""

    def states(self, model: Any, texts: Sequence[str], semantic: Semantic | None = None) -> Tensor:
        """Return the states (B, 8, D) that condition drawing, of captions, or of images with templates."""

    def word_states(self, model: Any, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return the states of captions, and what a lower layer makes of their words, (B, words, D)."""

    def learns_patches(self, name: str) -> bool:
        """Whether a parameter belongs to the part that encodes images as h_v."""

    def learns_understanding(self, name: str) -> bool:
        """Whether a parameter belongs to the understanding half, h_v's part included."""

    def is_inner(self, name: str) -> bool:
        """Whether Muon may train a parameter."""


def train(
    folder: Path,
    reader: Reader,
    model: Any,
    probes: Probes,
    data: LabeledScenes,
    recipe: UnderstandingRecipe,
    seed: int,
    held_out: LabeledScenes,
) -> float:
    """Train the understanding half in place; return the CPU seconds.

    First the vision tower on tags alone, which leave all facts in h_v; then the language model from a frozen tower, at
    half the price; at last the tower once more, through the frozen language model.
    """
    weights = {name: value for name, value in model.named_parameters() if reader.learns_understanding(name)}
    model.requires_grad_(False)
    vision = {name: weights.pop(name) for name in list(weights) if reader.learns_patches(name)}
    vision |= {f"probes.patch.{name}": value for name, value in probes.patch.named_parameters()}
    weights |= {f"probes.{name}": value for name, value in probes.named_parameters() if f"probes.{name}" not in vision}
    model.train()
    seconds, rate = 0.0, recipe.learning_rate
    lessons = (reader, model, probes, data, recipe, seed)
    for name, parameters, loss_at, steps, peak in (
        ("tags", vision, _tag_lessons(*lessons), recipe.tag_steps, rate),
        ("understanding", weights, _joint_lessons(*lessons, "joint"), recipe.joint_steps, rate),
        ("refinement", weights, _joint_lessons(*lessons, "refine"), recipe.refine_steps, recipe.refine_learning_rate),
        ("vision", vision, _vision_lessons(*lessons), recipe.vision_steps, recipe.vision_learning_rate),
    ):
        for key, value in (vision | weights).items():
            value.requires_grad_(key in parameters)
        model.train_vision = parameters is vision
        seconds += optimize(
            folder / f"{name}.pt",
            parameters,
            loss_at,
            steps=steps,
            rate=peak,
            is_inner=reader.is_inner,
            evaluate=lambda: str(evaluate(reader.states, model, probes, held_out, seed)),
            evaluate_every=200,
        )
    model.eval()
    return seconds


def _tag_lessons(
    reader: Reader, model: UnifiedModel, probes: Probes, data: LabeledScenes, recipe: UnderstandingRecipe, seed: int
) -> Callable[[int], tuple[Tensor, str]]:
    def loss_at(step: int) -> tuple[Tensor, str]:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        rows = torch.randint(len(data.images), (recipe.tag_batch_size,), generator=generator)
        patches = model.encode_semantic(pixels(data.images[rows])).embeds
        loss = probes.tag_loss(patches, data.tags.rows(rows))
        return loss, f"tags {loss.item():.3f}"

    return loss_at


def _vision_lessons(
    reader: Reader, model: UnifiedModel, probes: Probes, data: LabeledScenes, recipe: UnderstandingRecipe, seed: int
) -> Callable[[int], tuple[Tensor, str]]:
    def loss_at(step: int) -> tuple[Tensor, str]:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + 700_000 + step)
        rng = random.Random(f"vision-{seed}-{step}")
        rows = torch.randint(len(data.images), (recipe.vision_batch_size,), generator=generator)
        labels, semantic = data.labels.rows(rows), model.encode_semantic(pixels(data.images[rows]))
        image_states = reader.states(model, [TEMPLATES[rng.randrange(SIMPLE)] for _ in rows], semantic)
        with torch.no_grad():
            caption_states = reader.states(model, [data.captions[row] for row in rows])
        tags = probes.tag_loss(semantic.embeds, data.tags.rows(rows))
        image = _state_loss(probes, image_states, labels)
        alignment = probes.alignment_loss(image_states, caption_states)
        return (
            image + alignment + tags,
            f"image {image.item():.3f}, alignment {alignment.item():.3f}, tags {tags.item():.3f}",
        )

    return loss_at


def _state_loss(probes: Probes, states: Tensor, labels: SceneLabels) -> Tensor:
    return probes.gist_loss(states, labels) + 4 * probes.color_set_loss(states, labels)


def _joint_lessons(
    reader: Reader,
    model: UnifiedModel,
    probes: Probes,
    data: LabeledScenes,
    recipe: UnderstandingRecipe,
    seed: int,
    phase: Literal["joint", "refine"],
) -> Callable[[int], tuple[Tensor, str]]:
    rng = random.Random(f"statements-{seed}")
    sentences, facts = zip(*(random_statement(rng) for _ in range(recipe.statements)), strict=True)
    sentence_labels = to_labels(facts)

    def loss_at(step: int) -> tuple[Tensor, str]:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + (500_000 if phase == "joint" else 600_000) + step)
        rng = random.Random(f"{phase}-{seed}-{step}")
        rows = torch.randint(len(data.images), (recipe.batch_size,), generator=generator)
        lines = torch.randint(len(sentences), (recipe.batch_size,), generator=generator)
        semantic = model.encode_semantic(pixels(data.images[rows]))
        prompts = [TEMPLATES[rng.randrange(SIMPLE)] for _ in rows]
        image_states = reader.states(model, prompts, semantic)
        caption_states = reader.states(model, [data.captions[row] for row in rows])
        statements, statement_labels = [sentences[line] for line in lines], sentence_labels.rows(lines)
        sentence_states, words = reader.word_states(model, statements)
        nouns = word_tags(statements, statement_labels)
        image = _state_loss(probes, image_states, data.labels.rows(rows))
        text = _state_loss(probes, sentence_states, statement_labels)
        tags = probes.word_loss(words[nouns.rows, nouns.words], nouns)
        alignment = probes.alignment_loss(image_states, caption_states)
        answers = weighted_question_loss(model, data, rows[: recipe.questions], rng)
        losses = {"image": image, "text": text, "words": tags, "alignment": alignment, "answers": answers}
        line = ", ".join(f"{name} {loss.item():.3f}" for name, loss in losses.items())
        return torch.stack(list(losses.values())).sum(), line

    return loss_at


@torch.no_grad()
def evaluate(
    states_of: Callable[..., Tensor], model: Any, probes: Probes, data: LabeledScenes, seed: int, batch: int = 250
) -> dict[str, float]:
    """Held-out accuracy: the probes' (``probe_…``), alignment, and the model's own answers by kind of question.

    Args:
        states_of: See :meth:`Reader.states`.
        model: The model under test.
        probes: Trained with it.
        data: Held-out scenes.
        seed: Of the sentences.
        batch: Images per batch.
    """
    rng = random.Random(f"examination-{seed}")
    was_training = model.training
    model.eval()
    images = pixels(data.images)
    blocks = torch.arange(len(images)).split(batch)

    def text_states(texts: Sequence[str]) -> Tensor:
        return torch.cat([states_of(model, [texts[row] for row in block]) for block in blocks])

    image_states = torch.cat(
        [states_of(model, [TEMPLATES[0]] * len(block), model.encode_semantic(images[block])) for block in blocks]
    )
    caption_states = text_states(data.captions)
    sentences, facts = zip(*(random_statement(rng) for _ in range(len(images))), strict=True)
    scores = _probe_scores(probes, image_states, data.labels, "image")
    scores |= _probe_scores(probes, text_states(sentences), to_labels(facts), "text")
    wholes = [F.normalize(probes.whole(states.flatten(1)), dim=-1) for states in (image_states, caption_states)]
    retrieved = (wholes[0] @ wholes[1].T).argmax(1) == torch.arange(len(images))
    scores["retrieval_at_1"] = retrieved.float().mean().item()
    scores["cosine_matched"] = F.cosine_similarity(image_states, caption_states, dim=-1).mean().item()
    scores["cosine_mismatched"] = F.cosine_similarity(image_states, caption_states.roll(1, 0), dim=-1).mean().item()
    scores |= answer_scores(model, images, data.questions, batch)
    model.train(was_training)
    return scores


def _probe_scores(probes: Probes, states: Tensor, labels: SceneLabels, source: str) -> dict[str, float]:
    counts, colors = probes.count(states).argmax(-1), probes.color(states).argmax(-1)
    logits, targets = probes.relations(states, labels)
    is_present, has_color, is_counted = labels.counts > 0, labels.colors != UNLABELED, labels.counts != UNLABELED
    is_shape = is_counted & (is_present | (counts > 0))
    return {
        f"probe_{source}_shape": (is_present == (counts > 0))[is_shape].float().mean().item(),
        f"probe_{source}_count": (counts == labels.counts)[is_present].float().mean().item(),
        f"probe_{source}_color": (colors == labels.colors)[has_color].float().mean().item(),
        f"probe_{source}_relation": (logits.argmax(-1) == targets).float().mean().item(),
    }
