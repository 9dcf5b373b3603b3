"""``python -m tools.tiny_bases``: make the base of ``janus_tiny`` on rendered scenes, stage by stage.

A stage that has finished is kept under the state folder and not repeated; the base and its model card
replace ``data/bases/janus_tiny`` at the very end. About an hour and a half on one core.
"""

import argparse
import hashlib
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.janus.modeling_janus import JanusVQVAE

from reca.config import ROOT
from reca.data.synthetic.scenes import Scene, questions, render, sample_scene, sparse_caption
from reca.evaluation.judges.scene_detector import SceneDetector
from reca.models.janus.model import Janus
from reca.runtime.files import atomic_file, write_json
from reca.runtime.hashing import json_digest
from reca.runtime.progress import Progress
from tools.tiny_bases import janus_generation, janus_tiny, janus_tokenizer, janus_understanding
from tools.tiny_bases.base_card import model_card
from tools.tiny_bases.janus_generation import Recipe as DrawingRecipe
from tools.tiny_bases.janus_tokenizer import Codebook
from tools.tiny_bases.janus_tokenizer import Recipe as TokenizerRecipe
from tools.tiny_bases.janus_understanding import Recipe as UnderstandingRecipe
from tools.tiny_bases.scene_labels import opening
from tools.tiny_bases.training import Report, pixels

STUDY_SEED, HELD_OUT_SEED, TOKENIZER_SEED, GALLERY_SEED = 100, 101, 102, 103
"""Streams of scenes; the detector's are 110 and 111, and no run or benchmark uses any of these."""


@dataclass(frozen=True)
class Recipe:
    """Everything that the weights depend on, but the code."""

    seed: int = 0
    study_images: int = 100_000
    tokenizer_images: int = 20_000
    gallery_images: int = 50_000
    held_out_images: int = 1_000
    understanding: UnderstandingRecipe = field(default_factory=UnderstandingRecipe)
    tokenizer: TokenizerRecipe = field(default_factory=TokenizerRecipe)
    drawing: DrawingRecipe = field(default_factory=DrawingRecipe)

    def digest(self) -> str:
        """Names the recipe's folder of finished stages."""
        return json_digest(asdict(self), 16)


def main(arguments: Sequence[str]) -> int:
    """Parse the command line and make the base."""
    parser = argparse.ArgumentParser(prog="python -m tools.tiny_bases", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; another number, other last bits")
    parser.add_argument("--out", type=Path, default=ROOT / "data/bases/janus_tiny")
    parser.add_argument("--state", type=Path, default=ROOT / ".reca/pretrain", help="where finished stages are kept")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    pretrain(Recipe(seed=options.seed), options.out, options.state)
    return 0


def pretrain(recipe: Recipe, out: Path, state: Path) -> None:
    """Make a base: understanding, the tokenizer (whose decoder is taught by the vision tower), then drawing."""
    done = state / recipe.digest()
    torch.manual_seed(recipe.seed)
    model = janus_tiny.build()
    probes = janus_understanding.Probes(janus_tiny.WIDTH)
    grid = janus_tiny.IMAGE_SIZE // janus_tiny.PATCH
    scenes, images = scene_pool(STUDY_SEED, recipe.study_images)
    held_out = janus_understanding.study(*scene_pool(HELD_OUT_SEED, recipe.held_out_images), grid, 1)
    vq, seconds = model.network.model.vqmodel, dict[str, float]()
    pictured, pictures = scene_pool(TOKENIZER_SEED, recipe.tokenizer_images)
    pictures = torch.cat([pictures, empty_scenes(pictured[: recipe.tokenizer_images // 20])])
    codebook = janus_tokenizer.build_codebook(
        pictured[: recipe.tokenizer.outline_scenes],
        janus_tiny.IMAGE_SIZE,
        janus_tiny.IMAGE_SIZE // janus_tiny.CODES_PER_SIDE,
        janus_tiny.OUTLINES,
        vq.config.embed_dim,
        recipe.seed,
    )

    def understand(report: Report) -> None:
        study = janus_understanding.study(scenes, images, grid, recipe.seed)
        janus_understanding.train(model, probes, study, recipe.understanding, recipe.seed, report)

    def encode(report: Report) -> None:
        janus_tokenizer.train_encoder(vq, codebook, pictures, recipe.tokenizer, recipe.seed, report)

    def decode(report: Report) -> None:
        vision = model.network.model.vision_model
        janus_tokenizer.train_decoder(vq, vision, pictures, recipe.tokenizer, recipe.seed, report)

    def draw(report: Report) -> None:
        gallery = make_gallery(vq, codebook, scenes, images, recipe)
        janus_generation.prepare(model, gallery.captions)
        janus_generation.train(model, gallery, recipe.drawing, recipe.seed, report)

    stages = {"understanding": understand, "encoder": encode, "decoder": decode, "drawing": draw}
    for name, work in stages.items():
        torch.manual_seed(recipe.seed)  # a stage begins alike whether those before it were done now or kept
        seconds[name] = stage(done / f"{name}.pt", name, {"model": model, "probes": probes}, work)
    model.network.half()
    model.save_official(out)
    model.network.float()  # what is measured is what was written
    scores = janus_understanding.examine(model, probes, held_out, recipe.seed)
    scores |= tokenizer_scores(model, scene_pool(HELD_OUT_SEED, recipe.held_out_images)[0])
    write_base_card(out, recipe, scores, seconds)
    print(f"base written to {out}")


def write_base_card(out: Path, recipe: Recipe, scores: dict[str, float], seconds: dict[str, float]) -> None:
    """``card.json`` and ``README.md`` beside the weights."""
    pools = {
        name: pool_digest(seed)
        for name, seed in (("study", STUDY_SEED), ("tokenizer", TOKENIZER_SEED), ("gallery", GALLERY_SEED))
    }
    card = {
        "model": "janus_tiny",
        "recipe": asdict(recipe),
        "scene_streams": pools,
        "scores": {name: round(value, 4) for name, value in scores.items()},
        "train_seconds": {name: round(value) for name, value in seconds.items()},
        "torch": torch.__version__,
    }
    write_json(out / "card.json", card)
    (out / "README.md").write_text(model_card(card))


def stage(path: Path, name: str, modules: Mapping[str, nn.Module], work: Callable[[Report], None]) -> float:
    """Do a stage, or take up what it left of ``modules``; returns the seconds it took when it was done."""
    if path.is_file():
        kept = torch.load(path, weights_only=True)
        for key, module in modules.items():
            module.load_state_dict(kept[key])
        print(f"{name}: kept from {path}")
        return float(kept["seconds"])
    print(f"{name}: starts")
    began, progress = time.monotonic(), Progress(0, "steps")

    def report(step: int, steps: int, text: str) -> None:
        nonlocal progress
        if steps != progress.total:  # a stage of several phases counts each of them
            progress = Progress(steps, "steps")
        progress.update(step, f"{name}: {text}")

    work(report)
    seconds = time.monotonic() - began
    with atomic_file(path) as temporary:
        states = {key: module.state_dict() for key, module in modules.items()}
        torch.save({**states, "seconds": seconds}, temporary)
    return seconds


def scene_pool(seed: int, size: int) -> tuple[list[Scene], Tensor]:
    """Scenes of a stream and their images (N, 3, S, S) uint8."""
    scenes = [sample_scene(seed, index) for index in range(size)]
    blocks = [render(scenes[start : start + 2000], janus_tiny.IMAGE_SIZE) for start in range(0, size, 2000)]
    return scenes, torch.cat([torch.from_numpy(block) for block in blocks]).permute(0, 3, 1, 2).contiguous()


def empty_scenes(scenes: Sequence[Scene]) -> Tensor:
    """The backgrounds of scenes (N, 3, S, S) uint8: a model may draw nothing, and that must look like nothing."""
    images = render([replace(scene, shapes=()) for scene in scenes], janus_tiny.IMAGE_SIZE)
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def pool_digest(seed: int, sample: int = 256) -> dict[str, Any]:
    """A stream's seed and the hash of its first images: tells whether the renderer is still the same."""
    _, images = scene_pool(seed, sample)
    return {"seed": seed, "first": sample, "sha256": hashlib.sha256(images.numpy().tobytes()).hexdigest()}


def make_gallery(
    vq: JanusVQVAE, codebook: Codebook, scenes: Sequence[Scene], images: Tensor, recipe: Recipe
) -> janus_generation.Gallery:
    """Images to learn to draw, with sparse captions, and the study scenes for practising answers.

    The codes are the encoder's, as in every later training, and not the codebook's nearest patches, which it only
    imitates (docs/experiments.md, 2026-11-24).
    """
    pictured, pictures = scene_pool(GALLERY_SEED, recipe.gallery_images)
    rng = random.Random(f"gallery-{recipe.seed}")
    captions = [opening(rng) + sparse_caption(scene, rng) for scene in pictured]
    asked = [questions(scene, rng) for scene in scenes]
    codes = janus_tokenizer.encode(vq, pictures)
    return janus_generation.Gallery(codes.to(torch.int16), codebook, captions, images, asked)


def tokenizer_scores(model: Janus, scenes: Sequence[Scene]) -> dict[str, float]:
    """See :func:`detector_scores`."""
    vq = model.network.model.vqmodel

    def rebuild(images: Tensor) -> Tensor:
        drawn: Tensor = vq.decode(vq.encode(images).image_tokens.view(len(images), -1)).clamp(-1, 1)
        return drawn

    return detector_scores(rebuild, scenes)


@torch.no_grad()
def detector_scores(rebuild: Callable[[Tensor], Tensor], scenes: Sequence[Scene], batch: int = 250) -> dict[str, float]:
    """What the scene detector still finds after encoding and decoding: whole scenes, single shapes; pixel error."""
    detector = SceneDetector.load(ROOT / "data/bases/scene_detector")
    images = torch.from_numpy(render(scenes, janus_tiny.IMAGE_SIZE)).permute(0, 3, 1, 2)
    exact, found, wanted, error = 0, 0, 0, 0.0
    for start in range(0, len(scenes), batch):
        original = pixels(images[start : start + batch])
        drawn = rebuild(original)
        error += float((drawn - original).pow(2).sum()) / images[0].numel() / 4  # on the scale 0..1
        for scene, seen in zip(scenes[start : start + batch], detector.detect(drawn, 0.3), strict=True):
            truth = sorted((shape.kind, shape.color) for shape in scene.shapes)
            rest = sorted((shape.name, shape.color) for shape in seen)
            exact += truth == rest
            wanted += len(truth)
            for shape in truth:
                if shape in rest:
                    rest.remove(shape)
                    found += 1
    count = len(scenes)
    return {"tokenizer_exact": exact / count, "tokenizer_objects": found / wanted, "tokenizer_mse": error / count}
