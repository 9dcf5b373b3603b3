"""``python -m tools.tiny_bases model=<family>_tiny``: a short recipe for the bases of the other families than Janus.

Three stages, a minute or two each on one core: the image autoencoder on rendered scenes; understanding, the reading
half on what stands where and on questions; drawing, from sparse captions. It is enough to run the whole pipeline on
a model that is not random, and no more: the scores in the model card are weak and say so. What a family does its own
way (which autoencoder, which parts read and which draw) stands beside its sizes in ``<family>_tiny.py``.
"""

import argparse
import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from reca.config import ROOT
from reca.data.synthetic.scenes import Question, Scene, questions, sparse_caption
from reca.models.base import Target, UnifiedModel, load_model
from reca.runtime.files import write_json
from reca.runtime.hashing import json_digest
from reca.runtime.seeding import SampleRng
from tools.tiny_bases import bagel_tiny, harmon_tiny, openuni_tiny, showo_tiny
from tools.tiny_bases.base_card import model_card
from tools.tiny_bases.janus_recipe import HELD_OUT_SEED, STUDY_SEED, detector_scores, pool_digest, scene_pool, stage
from tools.tiny_bases.janus_understanding import Probes, answer_scores, asked_loss
from tools.tiny_bases.presets import options_of
from tools.tiny_bases.scene_labels import opening, patch_tags
from tools.tiny_bases.training import Report, one_cycle, pixels, update

M = TypeVar("M", bound=UnifiedModel, contravariant=True)
BUILT: dict[str, Any] = {"prompt_dropout": 0.1, "train_vision": True, "freeze_understanding": False}
"""Options of the model while it is made: no part that reads is cut off from its gradient."""
ABOUT = """A base with small numbers for the pipeline's tests and first looks: the family's own classes and file layout,
trained from nothing on scenes rendered by `reca/data/synthetic/scenes.py`. Its recipe is short on purpose (a few
minutes on one core), so its scores are weak: they say that it is no random network, not what this architecture can
learn. Not for use on photographs.

Made by `python -m tools.tiny_bases model={model}` (`tools/tiny_bases/short_recipe.py`); the recipe is below, and in
`card.json` for machines."""


class Preset(Protocol[M]):
    """What ``<family>_tiny.py`` has to offer."""

    RECIPE: dict[str, int]
    """Fields of :class:`Recipe` that differ from the defaults."""

    def build(self, **changes: Any) -> Any:
        """The model with random weights, under its preset's options but for the changed ones."""

    def autoencoder(self, model: M) -> nn.Module:
        """The part that turns images into codes or latents and back."""

    def rebuild(self, model: M, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, 3, S, S) after encoding and decoding, with gradient, and what is asked of the latents besides."""

    def settle(self, model: M, images: Tensor) -> None:
        """Set what follows from the stages before: called after the autoencoder's and after understanding."""

    def reads(self, name: str) -> bool:
        """Whether a parameter is trained to understand."""

    def draws(self, name: str) -> bool:
        """Whether a parameter is trained to draw."""


PRESETS: dict[str, Preset[Any]] = {
    "openuni_tiny": openuni_tiny,
    "showo_tiny": showo_tiny,
    "bagel_tiny": bagel_tiny,
    "harmon_tiny": harmon_tiny,
}


@dataclass(frozen=True)
class Recipe:
    """Everything that the weights depend on, but the code."""

    model: str
    seed: int = 0
    images: int = 8_000
    held_out_images: int = 200
    autoencoder_steps: int = 400
    autoencoder_batch_size: int = 32
    tag_steps: int = 300
    """Steps on what stands in each patch, before the first question."""
    reading_steps: int = 900
    reading_batch_size: int = 32
    drawing_steps: int = 700
    drawing_batch_size: int = 32
    practice_questions: int = 8
    """Questions beside every batch of drawing, where parameters are shared."""
    learning_rate: float = 2e-3

    def digest(self) -> str:
        """Names the recipe's folder of finished stages."""
        return json_digest(asdict(self), 16)


@dataclass(frozen=True)
class Pool:
    """Scenes to learn from."""

    images: Tensor
    """(N, 3, S, S) uint8"""
    scenes: Sequence[Scene]
    captions: Sequence[str]
    questions: Sequence[Sequence[Question]]

    @classmethod
    def of(cls, seed: int, size: int) -> "Pool":
        """The first scenes of a stream, each with one sparse caption and one set of questions."""
        scenes, images = scene_pool(seed, size)
        rng = random.Random(f"pool-{seed}")
        captions = [opening(rng) + sparse_caption(scene, rng) for scene in scenes]
        return cls(images, scenes, captions, [questions(scene, rng) for scene in scenes])


def main(arguments: Sequence[str]) -> int:
    """Parse the command line and make a base."""
    parser = argparse.ArgumentParser(prog="python -m tools.tiny_bases", description=__doc__)
    parser.add_argument("model", help="model=" + ", model=".join(PRESETS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--out", type=Path, help="default: data/bases/<model>")
    parser.add_argument("--state", type=Path, default=ROOT / ".reca/pretrain", help="where finished stages are kept")
    options = parser.parse_args(arguments)
    name = options.model.removeprefix("model=")
    if name not in PRESETS:
        parser.error(f"unknown model {name!r}; known: janus_tiny, {', '.join(PRESETS)}")
    torch.set_num_threads(options.threads)
    pretrain(
        Recipe(name, options.seed, **PRESETS[name].RECIPE), options.out or ROOT / "data/bases" / name, options.state
    )
    return 0


def pretrain(recipe: Recipe, out: Path, state: Path) -> None:
    """Make a base: image autoencoder, understanding, drawing; then measure what was written."""
    preset, done = PRESETS[recipe.model], state / recipe.digest()
    torch.manual_seed(recipe.seed)
    model = preset.build(**BUILT)
    pool = Pool.of(STUDY_SEED, recipe.images)
    seconds: dict[str, float] = {}

    def kept(name: str, work: Callable[[Report], None]) -> None:
        seconds[name] = stage(done / f"{name}.pt", name, {"model": model}, work)

    kept("autoencoder", lambda report: train_autoencoder(preset, model, pool, recipe, report))
    preset.settle(model, pixels(pool.images[:1000]))
    kept("understanding", lambda report: train_reading(preset, model, pool, recipe, report))
    preset.settle(model, pixels(pool.images[:1000]))
    kept("drawing", lambda report: train_drawing(preset, model, pool, recipe, report))
    model.half()
    model.save_official(out)
    written = load_model(model.family, out, options_of(recipe.model), torch.device("cpu")).eval()
    write_json(out / "card.json", card(recipe, examine(preset, written, recipe), seconds))
    (out / "README.md").write_text(model_card(json.loads((out / "card.json").read_text())))
    print(f"base written to {out}")


def train_autoencoder(preset: Preset[Any], model: UnifiedModel, pool: Pool, recipe: Recipe, report: Report) -> None:
    """The autoencoder in place: errors of the pixels (L1 and four times L2), and what it asks of its latents."""
    part = preset.autoencoder(model)
    model.requires_grad_(False)
    part.requires_grad_(True)
    part.train()
    weights, generator = list(part.parameters()), torch.Generator().manual_seed(recipe.seed)
    optimizer = torch.optim.AdamW(weights, recipe.learning_rate, betas=(0.9, 0.95), weight_decay=1e-4)
    for step in range(recipe.autoencoder_steps):
        rows = torch.randint(len(pool.images), (recipe.autoencoder_batch_size,), generator=generator)
        images = pixels(pool.images[rows])
        drawn, extra = preset.rebuild(model, images)
        error = drawn - images
        loss = error.abs().mean() + 4 * error.pow(2).mean() + extra
        update(optimizer, loss, weights, one_cycle(step, recipe.autoencoder_steps, recipe.learning_rate))
        report(step + 1, recipe.autoencoder_steps, f"error {error.pow(2).mean().item():.4f}, {extra.item():.3f}")
    part.eval()


def train_reading(preset: Preset[Any], model: UnifiedModel, pool: Pool, recipe: Recipe, report: Report) -> None:
    """Everything that reads: first what stands in each patch of h_v, then one question a scene beside that."""
    weights, side = _only(model, preset.reads), math.isqrt(model.spec.semantic_tokens)
    tags = patch_tags(pool.scenes, side)
    probes = Probes(model.encode_semantic(pixels(pool.images[:1])).embeds.shape[-1])
    trained = [*weights, *probes.patch.parameters()]
    rng, generator = random.Random(f"reading-{recipe.seed}"), torch.Generator().manual_seed(recipe.seed)
    optimizer = torch.optim.AdamW(trained, recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    steps = recipe.tag_steps + recipe.reading_steps
    for step in range(steps):
        rows = torch.randint(len(pool.images), (recipe.reading_batch_size,), generator=generator)
        # What a family has beyond the patches (Harmon's buffers) stands behind them.
        patches = model.encode_semantic(pixels(pool.images[rows])).embeds[:, : side**2]
        told = probes.tag_loss(patches, tags.rows(rows))
        loss = told
        if step >= recipe.tag_steps:
            loss = asked_loss(model, pool.images[rows], [pool.questions[row] for row in rows], rng) + 0.2 * told
        update(optimizer, loss, trained, one_cycle(step, steps, recipe.learning_rate))
        report(step + 1, steps, f"{'answers' if step >= recipe.tag_steps else 'tags'} {loss.item():.3f}")


def train_drawing(preset: Preset[Any], model: UnifiedModel, pool: Pool, recipe: Recipe, report: Report) -> None:
    """Everything that draws, from sparse captions; answers go on where both halves have parameters in common."""
    weights = _only(model, preset.draws)
    shared = any(preset.reads(name) and preset.draws(name) for name, _ in model.named_parameters())
    targets = _targets(model, pool.images)
    rng, generator = random.Random(f"drawing-{recipe.seed}"), torch.Generator().manual_seed(recipe.seed)
    optimizer = torch.optim.AdamW(weights, recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    model.train()
    for step in range(recipe.drawing_steps):
        rows = torch.randint(len(pool.images), (recipe.drawing_batch_size,), generator=generator)
        noise = SampleRng.derived("drawing", recipe.seed, step, size=len(rows))
        loss = model.text_to_image_loss([pool.captions[row] for row in rows], Target(targets[rows]), noise).value
        answers = torch.zeros(())
        if shared:
            some = rows[: recipe.practice_questions]
            answers = asked_loss(model, pool.images[some], [pool.questions[row] for row in some], rng)
        total = loss + 0.25 * answers
        update(optimizer, total, weights, one_cycle(step, recipe.drawing_steps, recipe.learning_rate))
        report(step + 1, recipe.drawing_steps, f"drawing {loss.item():.3f}, answers {answers.item():.3f}")
    model.eval()


def _only(model: nn.Module, chosen: Callable[[str], bool]) -> list[nn.Parameter]:
    """Freeze all parameters but the chosen ones, and return these."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(chosen(name))
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


@torch.no_grad()
def _targets(model: UnifiedModel, images: Tensor, batch: int = 250) -> Tensor:
    """Codes or latents of all images: the autoencoder does not change any more."""
    blocks = images.split(batch)
    return torch.cat([model.encode_target(pixels(block), SampleRng(range(len(block)))).values for block in blocks])


@torch.no_grad()
def examine(preset: Preset[Any], model: UnifiedModel, recipe: Recipe) -> dict[str, float]:
    """On held-out scenes: answers by kind of question; what the scene detector finds after encoding and decoding."""
    pool = Pool.of(HELD_OUT_SEED, recipe.held_out_images)
    scores = answer_scores(model, pixels(pool.images), pool.questions)
    scenes, _ = scene_pool(HELD_OUT_SEED, recipe.held_out_images)
    return scores | detector_scores(lambda images: preset.rebuild(model, images)[0].clamp(-1, 1), scenes)


def card(recipe: Recipe, scores: Mapping[str, float], seconds: Mapping[str, float]) -> dict[str, Any]:
    """``card.json``."""
    return {
        "model": recipe.model,
        "recipe": {key: value for key, value in asdict(recipe).items() if key != "model"},
        "scene_streams": {"study": pool_digest(STUDY_SEED), "held_out": pool_digest(HELD_OUT_SEED)},
        "scores": {name: round(value, 4) for name, value in scores.items()},
        "train_seconds": {name: round(value) for name, value in seconds.items()},
        "torch": torch.__version__,
        "about": ABOUT.format(model=recipe.model),
    }
