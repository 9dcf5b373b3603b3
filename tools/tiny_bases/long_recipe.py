"""The long recipe: image autoencoder, understanding, drawing from sparse captions.

For families whose condition for drawing is a bottleneck of eight states. A killed run goes on from its last checkpoint
in the state folder; the base and its model card replace the output folder at the very end.
"""

import random
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from reca.data.synthetic.scenes import sparse_caption
from reca.models.openuni.model import OpenUni
from reca.runtime.hashing import json_digest
from tools.tiny_bases import autoencoder, flow, openuni_tiny, understanding
from tools.tiny_bases.autoencoder import AutoencoderRecipe
from tools.tiny_bases.base_card import machine_class, write_card
from tools.tiny_bases.evaluation import detector_scores, drawing_scores
from tools.tiny_bases.flow import DrawingRecipe, Gallery
from tools.tiny_bases.presets import options_of
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
from tools.tiny_bases.training import pixels
from tools.tiny_bases.understanding import UnderstandingRecipe

SEEDS = {"study": STUDY_SEED, "tokenizer": TOKENIZER_SEED, "gallery": GALLERY_SEED, "held_out": HELD_OUT_SEED}
LOGGED_IMAGES = 150
"""Held-out scenes of the scores in the log; the card's are of ``held_out_images``."""


@dataclass(frozen=True)
class LongRecipe:
    """Everything besides the code that the weights depend on."""

    seed: int = 0
    autoencoder_images: int = 20_000
    study_images: int = 40_000
    gallery_images: int = 30_000
    held_out_images: int = 1_000
    drawn_prompts: int = 40
    """Prompts of the card in each category, four images each."""
    autoencoder: AutoencoderRecipe = field(default_factory=AutoencoderRecipe)
    understanding: UnderstandingRecipe = field(default_factory=UnderstandingRecipe)
    drawing: DrawingRecipe = field(default_factory=DrawingRecipe)


def pretrain(recipe: LongRecipe, out: Path, state: Path) -> None:
    """Make ``openuni_tiny``: DC-AE; InternVL and the queries; connector, projector and SANA."""
    folder, seconds = state / json_digest(asdict(recipe), 16), dict[str, float]()
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    model, probes = openuni_tiny.build(prompt_dropout=0.1, train_vision=True), Probes(openuni_tiny.WIDTH)
    grid = openuni_tiny.IMAGE_SIZE // openuni_tiny.PATCH

    scenes, images = render_stream(TOKENIZER_SEED, recipe.autoencoder_images)
    images = torch.cat([images, render_backgrounds(scenes[: len(scenes) // 20])])
    seconds["autoencoder"] = autoencoder.train(
        folder,
        model.network.vae,
        lambda batch: openuni_tiny.reconstruct(model, batch),
        images,
        recipe.autoencoder,
        recipe.seed,
    )
    openuni_tiny.scale_latents(model, pixels(images[:1000]))

    study = understanding.label(*render_stream(STUDY_SEED, recipe.study_images), grid, recipe.seed)
    held_out_scenes, held_out_images = render_stream(HELD_OUT_SEED, recipe.held_out_images)
    logged = understanding.label(held_out_scenes[:LOGGED_IMAGES], held_out_images[:LOGGED_IMAGES], grid, 1)
    seconds["understanding"] = understanding.train(
        folder, openuni_tiny, model, probes, study, recipe.understanding, recipe.seed, logged
    )

    seconds["drawing"] = flow.train(folder, model, lambda: make_gallery(model, recipe), recipe.drawing, recipe.seed)

    model.half()
    model.save_official(out)
    saved = OpenUni.load(out, options_of("openuni_tiny"), torch.device("cpu"))  # the scores are the rounded weights'
    held_out = understanding.label(held_out_scenes, held_out_images, grid, 1)
    scores = understanding.evaluate(openuni_tiny.states, saved, probes, held_out, recipe.seed)
    scores |= detector_scores(lambda batch: openuni_tiny.reconstruct(saved, batch)[0].clamp(-1, 1), held_out_scenes)
    scores |= drawing_scores(saved, recipe.drawn_prompts, 4)
    write_card(out, "openuni_tiny", asdict(recipe), SEEDS, scores, seconds, machine_class())


@torch.no_grad()
def make_gallery(model: OpenUni, recipe: LongRecipe) -> Gallery:
    """Return images with one sparse caption each, as latents and states, because both encoders are frozen by now."""
    scenes, images = render_stream(GALLERY_SEED, recipe.gallery_images)
    rng = random.Random(f"gallery-{recipe.seed}")
    captions = [caption_opening(rng) + sparse_caption(scene, rng) for scene in scenes]
    latents = torch.cat([model.network.encode(pixels(block)) for block in images.split(250)])
    return Gallery(latents.half(), flow.caption_states(model, captions).half())
