"""``showo_tiny``: a small Show-o with CLIP, its word tokenizer, and its hooks for the short recipe."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, PhiConfig, PreTrainedTokenizerFast

from reca.models.showo.autoencoder import Magvit, MagvitSizes
from reca.models.showo.checkpoint import ShowoParts, build_vocabulary, empty_phi, empty_projector
from reca.models.showo.model import QUESTION_TEXT, Showo
from tools.tiny_bases.presets import UNKNOWN, options_of, word_tokenizer

END = "<|endoftext|>"
IMAGE_SIZE, PATCH = 24, 6
MAGVIT = MagvitSizes(
    base_channels=32,
    encoder_channels=(32, 32, 64),
    encoder_blocks=(1, 1, 1),
    decoder_channels=(32, 32, 64),
    decoder_blocks=(1, 1, 1),
    bits=10,
)
"""6 x 6 codes of 1024."""
SPECIAL_TOKENS = 10
WIDTH, VISION_WIDTH, HEADS = 128, 96, 4


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build a tokenizer with a token per word, and the markers of Show-o's turns."""
    words = [*QUESTION_TEXT.format("").split(), END]
    return word_tokenizer([UNKNOWN], words, [UNKNOWN, END], {"bos_token": END, "eos_token": END})


def build(**changes: Any) -> Showo:
    """Build ``showo_tiny`` with random weights and perhaps changed options; seed torch's generator first."""
    tokenizer = build_tokenizer()
    size = len(tokenizer) + SPECIAL_TOKENS + MAGVIT.codebook + 1
    config = {
        "w_clip_vit": True,
        "vocab_size": size,
        "llm_vocab_size": len(tokenizer),
        "codebook_size": MAGVIT.codebook,
        "num_vq_tokens": (IMAGE_SIZE // MAGVIT.downsampling) ** 2,
        "mask_token_id": size - 1,
    }
    phi_config = PhiConfig(
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=6,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        partial_rotary_factor=0.5,
        max_position_embeddings=128,
        initializer_range=0.05,
        resid_pdrop=0.0,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    vision = CLIPVisionConfig(
        image_size=IMAGE_SIZE,
        patch_size=PATCH,
        hidden_size=VISION_WIDTH,
        intermediate_size=3 * VISION_WIDTH,
        num_hidden_layers=4,
        num_attention_heads=HEADS,
    )
    parts = ShowoParts(
        config=config,
        phi=empty_phi(phi_config, size, device="cpu"),
        tokenizer=tokenizer,
        vocabulary=build_vocabulary(config, tokenizer.eos_token_id),
        magvit=Magvit(MAGVIT),
        clip=CLIPVisionModel(vision),
        projector=empty_projector(VISION_WIDTH, WIDTH, WIDTH, device="cpu"),
    )
    return Showo(parts, options_of("showo_tiny", **changes)).eval()


# -- pre-training (tools/tiny_bases/short_recipe.py) -------------------------------------------------------------

RECIPE_CHANGES: dict[str, int] = {}
"""Differences from the short recipe's defaults."""


def autoencoder(model: Showo) -> nn.Module:
    """Return MAGVIT-v2."""
    return model.magvit


def reconstruct(model: Showo, images: Tensor) -> tuple[Tensor, Tensor]:
    """Encode and decode with MAGVIT-v2, by the straight-through gradient of its signs.

    The loss keeps latents near their signs (commitment) and the bits of a batch balanced, instead of the paper's
    entropies (arXiv 2310.05737, equation 7).
    """
    latents = model.magvit.encoder(images)
    signs = torch.where(latents > 0, 1.0, -1.0)
    decoded: Tensor = model.magvit.decoder(latents + (signs - latents).detach())
    commitment = (latents - signs).pow(2).mean()
    balance = latents.tanh().mean((0, 2, 3)).pow(2).mean()
    return decoded, 0.05 * commitment + 0.1 * balance


def prepare_next_stage(model: Showo, images: Tensor) -> None:
    """Leave the model unchanged, because signs have no scale."""


def learns_understanding(name: str) -> bool:
    """Phi, projector and CLIP."""
    return not name.startswith("magvit.")


def learns_generation(name: str) -> bool:
    """Phi and projector."""
    return not name.startswith(("magvit.", "clip."))
