"""The long recipe of ``janus_tiny``, on which the demo rests: understanding, image tokenizer, generation.

Finished stages are saved in the state folder and not repeated; the base and its model card replace the output folder
at the very end. About an hour and a half on one core.
"""

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from transformers.models.janus.modeling_janus import JanusVQVAE

from reca.data.synthetic.scenes import Scene, questions, sparse_caption
from reca.models.janus.model import Janus
from reca.runtime.hashing import json_digest
from tools.tiny_bases import janus_generation, janus_tiny, janus_tokenizer, janus_understanding
from tools.tiny_bases.base_card import write_card
from tools.tiny_bases.evaluation import detector_scores
from tools.tiny_bases.janus_generation import Gallery, GenerationRecipe
from tools.tiny_bases.janus_tokenizer import Codebook, TokenizerRecipe
from tools.tiny_bases.janus_understanding import UnderstandingRecipe
from tools.tiny_bases.probes import Probes
from tools.tiny_bases.scene_labels import caption_opening
from tools.tiny_bases.scene_streams import (
    GALLERY_SEED,
    HELD_OUT_SEED,
    STUDY_SEED,
    TOKENIZER_SEED,
    render_backgrounds,
    render_stream,
)
from tools.tiny_bases.training import Report, run_stage


@dataclass(frozen=True)
class JanusRecipe:
    """Everything besides the code that the weights depend on."""

    seed: int = 0
    study_images: int = 100_000
    tokenizer_images: int = 20_000
    gallery_images: int = 50_000
    held_out_images: int = 1_000
    understanding: UnderstandingRecipe = field(default_factory=UnderstandingRecipe)
    tokenizer: TokenizerRecipe = field(default_factory=TokenizerRecipe)
    drawing: GenerationRecipe = field(default_factory=GenerationRecipe)


def pretrain(recipe: JanusRecipe, out: Path, state: Path) -> None:
    """Make the base: understanding, the tokenizer (its decoder learns from the vision tower), then generation."""
    stage_folder = state / json_digest(asdict(recipe), 16)
    torch.manual_seed(recipe.seed)
    model = janus_tiny.build()
    probes = Probes(janus_tiny.WIDTH)
    grid = janus_tiny.IMAGE_SIZE // janus_tiny.PATCH
    scenes, images = render_stream(STUDY_SEED, recipe.study_images)
    held_out = janus_understanding.label(*render_stream(HELD_OUT_SEED, recipe.held_out_images), grid, 1)
    vq, seconds = model.network.model.vqmodel, dict[str, float]()
    tokenizer_scenes, tokenizer_images = render_stream(TOKENIZER_SEED, recipe.tokenizer_images)
    backgrounds = render_backgrounds(tokenizer_scenes[: recipe.tokenizer_images // 20])
    tokenizer_images = torch.cat([tokenizer_images, backgrounds])
    codebook = janus_tokenizer.build_codebook(
        tokenizer_scenes[: recipe.tokenizer.outline_scenes],
        janus_tiny.IMAGE_SIZE,
        janus_tiny.IMAGE_SIZE // janus_tiny.CODES_PER_SIDE,
        janus_tiny.OUTLINES,
        vq.config.embed_dim,
        recipe.seed,
    )

    def train_understanding(report: Report) -> None:
        data = janus_understanding.label(scenes, images, grid, recipe.seed)
        janus_understanding.train(model, probes, data, recipe.understanding, recipe.seed, report)

    def train_encoder(report: Report) -> None:
        janus_tokenizer.train_encoder(vq, codebook, tokenizer_images, recipe.tokenizer, recipe.seed, report)

    def train_decoder(report: Report) -> None:
        vision = model.network.model.vision_model
        janus_tokenizer.train_decoder(vq, vision, tokenizer_images, recipe.tokenizer, recipe.seed, report)

    def train_generation(report: Report) -> None:
        gallery = make_gallery(vq, codebook, scenes, images, recipe)
        janus_generation.prepare(model, gallery.captions)
        janus_generation.train(model, gallery, recipe.drawing, recipe.seed, report)

    stages = {
        "understanding": train_understanding,
        "encoder": train_encoder,
        "decoder": train_decoder,
        "drawing": train_generation,
    }
    for name, train in stages.items():
        torch.manual_seed(recipe.seed)  # a stage starts alike whether earlier ones were trained or loaded
        seconds[name] = run_stage(stage_folder / f"{name}.pt", name, {"model": model, "probes": probes}, train)
    model.network.half()
    model.save_official(out)
    model.network.float()  # the scores are those of the rounded weights
    scores = janus_understanding.evaluate(model, probes, held_out, recipe.seed)
    scores |= tokenizer_scores(model, render_stream(HELD_OUT_SEED, recipe.held_out_images)[0])
    seeds = {"study": STUDY_SEED, "tokenizer": TOKENIZER_SEED, "gallery": GALLERY_SEED}
    write_card(out, "janus_tiny", asdict(recipe), seeds, scores, seconds)


def make_gallery(
    vq: JanusVQVAE, codebook: Codebook, scenes: Sequence[Scene], images: Tensor, recipe: JanusRecipe
) -> Gallery:
    """Return images with sparse captions to learn generation, and the study scenes for practising answers.

    The codes are the encoder's, as in every later training, and not the codebook's nearest patches, which it only
    imitates (docs/experiments.md, 2026-11-24).
    """
    gallery_scenes, gallery_images = render_stream(GALLERY_SEED, recipe.gallery_images)
    rng = random.Random(f"gallery-{recipe.seed}")
    captions = [caption_opening(rng) + sparse_caption(scene, rng) for scene in gallery_scenes]
    scene_questions = [questions(scene, rng) for scene in scenes]
    codes = janus_tokenizer.encode(vq, gallery_images)
    return Gallery(codes.to(torch.int16), codebook, captions, images, scene_questions)


def tokenizer_scores(model: Janus, scenes: Sequence[Scene]) -> dict[str, float]:
    """See :func:`detector_scores`."""
    vq = model.network.model.vqmodel

    def reconstruct(images: Tensor) -> Tensor:
        decoded: Tensor = vq.decode(vq.encode(images).image_tokens.view(len(images), -1)).clamp(-1, 1)
        return decoded

    return detector_scores(reconstruct, scenes)
