"""The short recipe of all tiny presets except Janus': image autoencoder, understanding, generation.

Each stage takes a minute or two on one core. It is enough to run the whole pipeline on a model that is not random, and
no more: the scores in the model card are weak. The parts that differ between families (which autoencoder, which
parameters learn understanding and which generation) are next to the sizes in ``<family>_tiny.py``.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from reca.data.synthetic.scenes import Scene, SceneQuestion, questions, sparse_caption
from reca.models.base import Target, UnifiedModel
from reca.models.loading import load_model
from reca.runtime.hashing import json_digest
from reca.runtime.seeding import SampleRng
from tools.tiny_bases import bagel_tiny, harmon_tiny, openuni_tiny, showo_tiny
from tools.tiny_bases.base_card import write_card
from tools.tiny_bases.evaluation import answer_scores, detector_scores, question_loss
from tools.tiny_bases.presets import options_of
from tools.tiny_bases.probes import Probes
from tools.tiny_bases.scene_labels import caption_opening, patch_tags
from tools.tiny_bases.scene_streams import HELD_OUT_SEED, STUDY_SEED, render_stream
from tools.tiny_bases.training import Report, one_cycle, pixels, run_stage, update

M = TypeVar("M", bound=UnifiedModel, contravariant=True)
PRETRAINING_OPTIONS: dict[str, Any] = {"prompt_dropout": 0.1, "train_vision": True, "freeze_understanding": False}
"""Model options during pre-training: gradients reach every part that understands."""


class Preset(Protocol[M]):
    """Contents of ``<family>_tiny.py``."""

    RECIPE_CHANGES: dict[str, int]
    """Fields of :class:`ShortRecipe` that differ from the defaults."""

    def build(self, **changes: Any) -> Any:
        """Build the model with random weights, under its preset's options with ``changes``."""

    def autoencoder(self, model: M) -> nn.Module:
        """Return the module that turns images into codes or latents and back."""

    def reconstruct(self, model: M, images: Tensor) -> tuple[Tensor, Tensor]:
        """Encode and decode images (B, 3, S, S) with gradient; return the images and a loss on the latents."""

    def prepare_next_stage(self, model: M, images: Tensor) -> None:
        """Set values that follow from earlier stages: called after the autoencoder's and after understanding."""

    def learns_understanding(self, name: str) -> bool:
        """Return whether the understanding stage trains the parameter of this name."""

    def learns_generation(self, name: str) -> bool:
        """Return whether the generation stage trains the parameter of this name."""


PRESETS: dict[str, Preset[Any]] = {
    "openuni_tiny": openuni_tiny,
    "showo_tiny": showo_tiny,
    "bagel_tiny": bagel_tiny,
    "harmon_tiny": harmon_tiny,
}


@dataclass(frozen=True)
class ShortRecipe:
    """Everything besides the code that the weights depend on."""

    model: str
    seed: int = 0
    images: int = 8_000
    held_out_images: int = 200
    autoencoder_steps: int = 400
    autoencoder_batch_size: int = 32
    tag_steps: int = 300
    """Steps on patch tags, before the first question."""
    reading_steps: int = 900
    reading_batch_size: int = 32
    drawing_steps: int = 700
    drawing_batch_size: int = 32
    practice_questions: int = 8
    """Questions per step of generation, if understanding and generation share parameters."""
    learning_rate: float = 2e-3


@dataclass(frozen=True)
class CaptionedScenes:
    """Scenes to learn from, each with its image, one sparse caption and questions."""

    images: Tensor
    """(N, 3, S, S) uint8"""
    scenes: Sequence[Scene]
    captions: Sequence[str]
    questions: Sequence[Sequence[SceneQuestion]]

    @classmethod
    def from_seed(cls, seed: int, size: int) -> "CaptionedScenes":
        """Build from the first scenes of a seed."""
        scenes, images = render_stream(seed, size)
        rng = random.Random(f"pool-{seed}")
        captions = [caption_opening(rng) + sparse_caption(scene, rng) for scene in scenes]
        return cls(images, scenes, captions, [questions(scene, rng) for scene in scenes])


def pretrain(recipe: ShortRecipe, out: Path, state: Path) -> None:
    """Make a base: image autoencoder, understanding, generation; then score the saved weights."""
    preset, stage_folder = PRESETS[recipe.model], state / json_digest(asdict(recipe), 16)
    torch.manual_seed(recipe.seed)
    model = preset.build(**PRETRAINING_OPTIONS)
    data = CaptionedScenes.from_seed(STUDY_SEED, recipe.images)
    seconds: dict[str, float] = {}

    def run(name: str, train: Callable[[Report], None]) -> None:
        seconds[name] = run_stage(stage_folder / f"{name}.pt", name, {"model": model}, train)

    run("autoencoder", lambda report: train_autoencoder(preset, model, data, recipe, report))
    preset.prepare_next_stage(model, pixels(data.images[:1000]))
    run("understanding", lambda report: train_understanding(preset, model, data, recipe, report))
    preset.prepare_next_stage(model, pixels(data.images[:1000]))
    run("drawing", lambda report: train_generation(preset, model, data, recipe, report))
    model.half()
    model.save_official(out)
    saved = load_model(model.family, out, options_of(recipe.model), torch.device("cpu")).eval()
    settings = {key: value for key, value in asdict(recipe).items() if key != "model"}
    seeds = {"study": STUDY_SEED, "held_out": HELD_OUT_SEED}
    write_card(out, recipe.model, settings, seeds, evaluate(preset, saved, recipe), seconds)


def train_autoencoder(
    preset: Preset[Any], model: UnifiedModel, data: CaptionedScenes, recipe: ShortRecipe, report: Report
) -> None:
    """Train the autoencoder in place on pixel errors (L1 and four times L2) and its own loss on the latents."""
    autoencoder = preset.autoencoder(model)
    model.requires_grad_(False)
    autoencoder.requires_grad_(True)
    autoencoder.train()
    weights, generator = list(autoencoder.parameters()), torch.Generator().manual_seed(recipe.seed)
    optimizer = torch.optim.AdamW(weights, recipe.learning_rate, betas=(0.9, 0.95), weight_decay=1e-4)
    for step in range(recipe.autoencoder_steps):
        rows = torch.randint(len(data.images), (recipe.autoencoder_batch_size,), generator=generator)
        images = pixels(data.images[rows])
        decoded, latent_loss = preset.reconstruct(model, images)
        error = decoded - images
        loss = error.abs().mean() + 4 * error.pow(2).mean() + latent_loss
        update(optimizer, loss, weights, one_cycle(step, recipe.autoencoder_steps, recipe.learning_rate))
        text = f"error {error.pow(2).mean().item():.4f}, latents {latent_loss.item():.3f}"
        report(step + 1, recipe.autoencoder_steps, text)
    autoencoder.eval()


def train_understanding(
    preset: Preset[Any], model: UnifiedModel, data: CaptionedScenes, recipe: ShortRecipe, report: Report
) -> None:
    """Train the understanding parameters: patch tags of h_v alone, then also one question per scene."""
    weights, side = _unfreeze(model, preset.learns_understanding), math.isqrt(model.spec.semantic_tokens)
    tags = patch_tags(data.scenes, side)
    probes = Probes(model.encode_semantic(pixels(data.images[:1])).embeds.shape[-1])
    parameters = [*weights, *probes.patch.parameters()]
    rng, generator = random.Random(f"reading-{recipe.seed}"), torch.Generator().manual_seed(recipe.seed)
    optimizer = torch.optim.AdamW(parameters, recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    steps = recipe.tag_steps + recipe.reading_steps
    for step in range(steps):
        rows = torch.randint(len(data.images), (recipe.reading_batch_size,), generator=generator)
        # Patches come first; Harmon's buffers follow them.
        patches = model.encode_semantic(pixels(data.images[rows])).embeds[:, : side**2]
        tag_loss = probes.tag_loss(patches, tags.rows(rows))
        loss = tag_loss
        if step >= recipe.tag_steps:
            answer_loss = question_loss(model, data.images[rows], [data.questions[row] for row in rows], rng)
            loss = answer_loss + 0.2 * tag_loss
        update(optimizer, loss, parameters, one_cycle(step, steps, recipe.learning_rate))
        report(step + 1, steps, f"{'answers' if step >= recipe.tag_steps else 'tags'} {loss.item():.3f}")


def train_generation(
    preset: Preset[Any], model: UnifiedModel, data: CaptionedScenes, recipe: ShortRecipe, report: Report
) -> None:
    """Train the generation parameters on sparse captions; with shared parameters answers are practised too."""
    weights = _unfreeze(model, preset.learns_generation)
    names = [name for name, _ in model.named_parameters()]
    shared = any(preset.learns_understanding(name) and preset.learns_generation(name) for name in names)
    targets = encode_targets(model, data.images)
    rng, generator = random.Random(f"drawing-{recipe.seed}"), torch.Generator().manual_seed(recipe.seed)
    optimizer = torch.optim.AdamW(weights, recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    model.train()
    for step in range(recipe.drawing_steps):
        rows = torch.randint(len(data.images), (recipe.drawing_batch_size,), generator=generator)
        noise = SampleRng.derived("drawing", recipe.seed, step, size=len(rows))
        loss = model.text_to_image_loss([data.captions[row] for row in rows], Target(targets[rows]), noise).value
        answers = torch.zeros(())
        if shared:
            practice = rows[: recipe.practice_questions]
            answers = question_loss(model, data.images[practice], [data.questions[row] for row in practice], rng)
        rate = one_cycle(step, recipe.drawing_steps, recipe.learning_rate)
        update(optimizer, loss + 0.25 * answers, weights, rate)
        report(step + 1, recipe.drawing_steps, f"generation {loss.item():.3f}, answers {answers.item():.3f}")
    model.eval()


def _unfreeze(model: nn.Module, is_trained: Callable[[str], bool]) -> list[nn.Parameter]:
    """Freeze all parameters except those of ``is_trained``, and return these."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_trained(name))
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


@torch.no_grad()
def encode_targets(model: UnifiedModel, images: Tensor, batch: int = 250) -> Tensor:
    """Encode all uint8 images once, because the autoencoder is frozen by now."""
    blocks = images.split(batch)
    return torch.cat([model.encode_target(pixels(block), SampleRng(range(len(block)))).values for block in blocks])


@torch.no_grad()
def evaluate(preset: Preset[Any], model: UnifiedModel, recipe: ShortRecipe) -> dict[str, float]:
    """Score a model on held-out scenes: answers by kind of question, and the detector's findings in reconstructions."""
    data = CaptionedScenes.from_seed(HELD_OUT_SEED, recipe.held_out_images)
    scores = answer_scores(model, pixels(data.images), data.questions)
    return scores | detector_scores(lambda images: preset.reconstruct(model, images)[0].clamp(-1, 1), data.scenes)
