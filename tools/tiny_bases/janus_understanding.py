"""Stage 2 of pre-training: understand scenes and sentences, and let both meet in the gist states.

Four pressures act together (what made RecA work at toy size; docs/decisions.md):

1. patch tags on the vision tower: what stands where, learnt in a few hundred steps;
2. probes on the gist states, shared by image and text: gist k speaks of the k-th kind of shape (count, colour,
   position), pairs of gists of their relation;
3. alignment: an image and its full caption agree gist by gist (cosine) and as wholes (InfoNCE, CLIP);
4. answers: the language model's own words, on questions about the image.

The probes are thrown away at the end; the model card gives their held-out accuracy beside the answers'.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reca.data.synthetic.scenes import COLORS, MAX_OBJECTS, RELATIONS, SHAPES, Question, Scene, full_caption, questions
from reca.models.base import Dialogue, Semantic, UnifiedModel
from reca.models.janus.model import Janus
from reca.models.prompts import SIMPLE, TEMPLATES
from reca.runtime.seeding import SampleRng
from tools.tiny_bases.scene_labels import (
    UNKNOWN,
    Labels,
    Tags,
    labels,
    opening,
    patch_tags,
    random_statement,
    scene_facts,
)
from tools.tiny_bases.training import Report, one_cycle, pixels, update


@dataclass(frozen=True)
class Recipe:
    """Steps and sizes of the stage."""

    tag_steps: int = 1500
    joint_steps: int = 3000
    batch_size: int = 64
    refine_steps: int = 1200
    """Further joint steps, in which the gists also learn all colours of kinds that appear in several."""
    questions_per_step: int = 32
    practice_steps: int = 3500
    """Steps of answers alone, by the layers above the gists."""
    practice_questions: int = 64
    learning_rate: float = 2e-3
    statements: int = 60_000


class Probes(nn.Module):
    """Small heads that say what the patch tokens and the gist states know."""

    def __init__(self, width: int) -> None:
        super().__init__()
        slots = len(SHAPES)
        self.patch = nn.Linear(width, 1 + slots + len(COLORS) + 2)
        self.count = nn.Linear(width, MAX_OBJECTS + 1)
        self.color = nn.Linear(width, len(COLORS))
        self.color_set = nn.Linear(width, len(COLORS))
        self.position = nn.Linear(width, 2)
        self.relation = nn.Sequential(nn.Linear(2 * width, 2 * width), nn.GELU(), nn.Linear(2 * width, len(RELATIONS)))
        self.whole = nn.Linear(slots * width, 64)
        self.log_temperature = nn.Parameter(torch.tensor(2.3))

    def tag_loss(self, patches: Tensor, tags: Tags) -> Tensor:
        """Cross-entropies and offset error of patch tokens (B, P, D)."""
        out, slots, colors = self.patch(patches), len(SHAPES), len(COLORS)
        there = tags.present > 0
        present = F.binary_cross_entropy_with_logits(out[..., 0], tags.present)
        kind = F.cross_entropy(out[..., 1 : 1 + slots][there], tags.kinds[there])
        color = F.cross_entropy(out[..., 1 + slots : 1 + slots + colors][there], tags.colors[there])
        offset = F.mse_loss(out[..., -2:][there], tags.offsets[there])
        return 4 * present + kind + color + 5 * offset

    def gist_loss(self, gists: Tensor, truth: Labels) -> Tensor:
        """Losses of gist states (B, S, D) against what is known of each sample."""
        loss = 2 * F.cross_entropy(self.count(gists).flatten(0, 1), truth.counts.flatten(), ignore_index=UNKNOWN)
        loss = loss + F.cross_entropy(self.color(gists).flatten(0, 1), truth.colors.flatten(), ignore_index=UNKNOWN)
        logits, wanted = self.relations(gists, truth)
        loss = loss + 1.5 * F.cross_entropy(logits, wanted)
        known = ~truth.positions.isnan().any(-1)
        if bool(known.any()):
            loss = loss + 5 * F.mse_loss(self.position(gists)[known], truth.positions[known])
        return loss

    def color_set_loss(self, gists: Tensor, truth: Labels) -> Tensor:
        """In which colours each kind appears: all of them, also where its shapes differ."""
        known = ~truth.color_sets.isnan()
        return F.binary_cross_entropy_with_logits(self.color_set(gists)[known], truth.color_sets[known])

    def relations(self, gists: Tensor, truth: Labels) -> tuple[Tensor, Tensor]:
        """Logits of every known relation of the batch, and the truth."""
        sample, first, second = (truth.relations != UNKNOWN).nonzero(as_tuple=True)
        pairs = torch.cat([gists[sample, first], gists[sample, second]], dim=-1)
        return self.relation(pairs), truth.relations[sample, first, second]

    def alignment_loss(self, image: Tensor, text: Tensor) -> Tensor:
        """Image and caption of a scene agree as wholes (InfoNCE) and gist by gist (cosine)."""
        a, b = (F.normalize(self.whole(gists.flatten(1)), dim=-1) for gists in (image, text))
        scores = a @ b.T * self.log_temperature.exp().clamp(max=50)
        same = torch.arange(len(scores))
        contrast = F.cross_entropy(scores, same) + F.cross_entropy(scores.T, same)
        return 0.3 * contrast + (1 - F.cosine_similarity(image, text, dim=-1)).mean()


@dataclass(frozen=True)
class Study:
    """Scenes to learn from, with everything that is asked of them."""

    images: Tensor
    """(N, 3, S, S) uint8"""
    facts: Labels
    tags: Tags
    captions: Sequence[str]
    questions: Sequence[Sequence[Question]]


def study(scenes: Sequence[Scene], images: Tensor, grid: int, seed: int) -> Study:
    """Label scenes; one full caption and one set of questions each."""
    rng = random.Random(f"study-{seed}")
    captions = [opening(rng) + full_caption(scene, rng) for scene in scenes]
    asked = [questions(scene, rng) for scene in scenes]
    return Study(images, labels([scene_facts(scene) for scene in scenes]), patch_tags(scenes, grid), captions, asked)


def train(model: Janus, probes: Probes, data: Study, recipe: Recipe, seed: int, report: Report) -> None:
    """Teach the vision tower and the language model; the drawing parts are not touched."""
    vision, generator = model.network.model.vision_model, torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    model.network.model.vqmodel.requires_grad_(False)
    first = [*vision.parameters(), *probes.patch.parameters()]
    optimizer = torch.optim.AdamW(first, recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    for step in range(recipe.tag_steps):
        rows = torch.randint(len(data.images), (recipe.batch_size,), generator=generator)
        patches = vision(pixel_values=pixels(data.images[rows])).last_hidden_state
        loss = probes.tag_loss(patches, data.tags.rows(rows))
        update(optimizer, loss, first, one_cycle(step, recipe.tag_steps, recipe.learning_rate))
        report(step + 1, recipe.tag_steps, f"tags {loss.item():.3f}")

    for steps, rate, color_sets in (
        (recipe.joint_steps, recipe.learning_rate, False),
        (recipe.refine_steps, recipe.learning_rate / 2, True),
    ):
        join(model, probes, data, recipe, seed, report, steps=steps, rate=rate, color_sets=color_sets)
    practise(model, data, recipe, seed, report)


def join(
    model: Janus,
    probes: Probes,
    data: Study,
    recipe: Recipe,
    seed: int,
    report: Report,
    *,
    steps: int,
    rate: float,
    color_sets: bool,
) -> None:
    """The four pressures together; ``color_sets`` adds a fifth."""
    rng, generator = random.Random(f"join-{seed}-{color_sets}"), torch.Generator().manual_seed(seed)
    texts, said = zip(*(random_statement(rng) for _ in range(recipe.statements)), strict=True)
    spoken = labels(said)
    drawing = ("generation_", "vqmodel")
    weights = [p for name, p in model.named_parameters() if not any(part in name for part in drawing)]
    weights += list(probes.parameters())
    optimizer = torch.optim.AdamW(weights, rate, betas=(0.9, 0.98), weight_decay=0.01)
    for step in range(steps):
        rows = torch.randint(len(data.images), (recipe.batch_size,), generator=generator)
        lines = torch.randint(len(texts), (recipe.batch_size,), generator=generator)
        images = pixels(data.images[rows])
        patches = model.network.model.vision_model(pixel_values=images).last_hidden_state
        prompts = [TEMPLATES[rng.randrange(SIMPLE)] for _ in rows]
        seen = model.gist_states(model.prompt_embeds(prompts, Semantic(model.network.model.aligner(patches))))
        sentences = [data.captions[row] for row in rows] + [texts[line] for line in lines]
        told, stated = model.gist_states(model.prompt_embeds(sentences)).chunk(2)
        facts, statements = data.facts.rows(rows), spoken.rows(lines)
        loss = 0.5 * probes.tag_loss(patches, data.tags.rows(rows))
        loss = loss + probes.gist_loss(seen, facts) + probes.gist_loss(stated, statements)
        loss = loss + probes.alignment_loss(seen, told)
        if color_sets:
            loss = loss + 4 * (probes.color_set_loss(seen, facts) + probes.color_set_loss(stated, statements))
        asked = rows[: recipe.questions_per_step]
        answers = answer_loss(model, data, asked, rng)
        update(optimizer, loss + answers, weights, one_cycle(step, steps, rate))
        report(step + 1, steps, f"gists {loss.item():.3f} answers {answers.item():.3f}")


def answer_loss(model: Janus, data: Study, rows: Tensor, rng: random.Random) -> Tensor:
    """One question about each of some scenes, the hard ones more often."""
    return asked_loss(model, data.images[rows], [weighted(data.questions[row]) for row in rows], rng)


def asked_loss(
    model: UnifiedModel, images: Tensor, questions: Sequence[Sequence[Question]], rng: random.Random
) -> Tensor:
    """One question, of several, about each of some images (B, 3, S, S) uint8; nothing else is random about it."""
    chosen = [rng.choice(several) for several in questions]
    dialogues = [Dialogue(question.text, question.answer) for question in chosen]
    return model.understanding_loss(pixels(images), dialogues, SampleRng([])).value


def weighted(asked: Sequence[Question]) -> list[Question]:
    """What is hard to learn is asked more often: relations three times, what needs a search by colour twice."""
    times = {"relation": 3, "existence": 2, "shape": 2}
    return [question for question in asked for _ in range(times.get(question.kind, 1))]


def practise(model: Janus, data: Study, recipe: Recipe, seed: int, report: Report) -> None:
    """Answers alone: the layers that read stay as they are, those above learn to put it into words."""
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
        loss = answer_loss(model, data, rows, rng)
        update(optimizer, loss, weights, one_cycle(step, recipe.practice_steps, recipe.learning_rate))
        report(step + 1, recipe.practice_steps, f"answers {loss.item():.3f}")


@torch.no_grad()
def examine(model: Janus, probes: Probes, data: Study, seed: int, batch: int = 250) -> dict[str, float]:
    """Held-out accuracy: the probes' (``probe_…``), alignment, and the model's own answers by kind of question."""
    rng = random.Random(f"examination-{seed}")
    images = pixels(data.images)
    blocks = torch.arange(len(images)).split(batch)
    template = TEMPLATES[0]
    seen = torch.cat(
        [model.gist_states(model.prompt_embeds([template] * len(b), model.encode_semantic(images[b]))) for b in blocks]
    )
    told = torch.cat([model.gist_states(model.prompt_embeds([data.captions[row] for row in b])) for b in blocks])
    texts, said = zip(*(random_statement(rng) for _ in range(len(images))), strict=True)
    stated = torch.cat([model.gist_states(model.prompt_embeds([texts[row] for row in b])) for b in blocks])
    scores = _probe_scores(probes, seen, data.facts, "image") | _probe_scores(probes, stated, labels(said), "text")
    wholes = [F.normalize(probes.whole(gists.flatten(1)), dim=-1) for gists in (seen, told)]
    found = (wholes[0] @ wholes[1].T).argmax(1) == torch.arange(len(images))
    scores["retrieval_at_1"] = found.float().mean().item()
    scores["cosine_matched"] = F.cosine_similarity(seen, told, dim=-1).mean().item()
    scores["cosine_mismatched"] = F.cosine_similarity(seen, told.roll(1, 0), dim=-1).mean().item()
    return scores | answer_scores(model, images, data.questions, batch)


@torch.no_grad()
def answer_scores(
    model: UnifiedModel, images: Tensor, questions: Sequence[Sequence[Question]], batch: int = 250
) -> dict[str, float]:
    """How often the model's own answers are right, by kind of question (``answer_…``).

    Args:
        model: Which is asked.
        images: (N, 3, S, S) in [-1, 1].
        questions: Those about each image.
        batch: Questions at a time.
    """
    asked = [(row, question) for row, several in enumerate(questions) for question in several]
    right: dict[str, list[bool]] = {}
    for start in range(0, len(asked), batch):
        part = asked[start : start + batch]
        answers = model.answer(images[[row for row, _ in part]], [question.text for _, question in part])
        for (_, question), answer in zip(part, answers, strict=True):
            right.setdefault(question.kind, []).append(answer == question.answer)
    return {f"answer_{kind}": sum(hits) / len(hits) for kind, hits in sorted(right.items())}


def _probe_scores(probes: Probes, gists: Tensor, truth: Labels, source: str) -> dict[str, float]:
    counts, colors = probes.count(gists).argmax(-1), probes.color(gists).argmax(-1)
    logits, wanted = probes.relations(gists, truth)
    present, colored = truth.counts > 0, truth.colors != UNKNOWN
    return {
        f"probe_{source}_count": (counts == truth.counts)[present].float().mean().item(),
        f"probe_{source}_color": (colors == truth.colors)[colored].float().mean().item(),
        f"probe_{source}_relation": (logits.argmax(-1) == wanted).float().mean().item(),
    }
