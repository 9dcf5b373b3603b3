"""``harmon_tiny``: a small Harmon, its word tokenizer, and its hooks for the short recipe."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from reca.models.autoencoder_kl import Kl16Sizes
from reca.models.harmon.model import (
    ASSISTANT,
    ENCODER_PREFIXES,
    END,
    GENERATION_PROMPT,
    UNCONDITIONAL_PROMPT,
    USER,
    Harmon,
)
from reca.models.harmon.network import CLASS_EMBEDDING, HarmonNetwork
from tools.tiny_bases.latents import LATENT_NOISE, statistics_loss
from tools.tiny_bases.presets import UNKNOWN, options_of, word_tokenizer

PAD, START = "<|endoftext|>", "<|im_start|>"
IMAGE_SIZE, CHANNELS, BUFFERS = 24, 16, 8
"""Pixels per side, channels of a latent, buffer tokens; 24 pixels become 6 x 6 latents."""
WIDTH, HEADS, LAYERS = 96, 4, 4


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build a tokenizer with a token per word, and Harmon's own turns."""
    special = [UNKNOWN, PAD, START, END]
    words = f"{USER} {ASSISTANT} {GENERATION_PROMPT.format('')} {UNCONDITIONAL_PROMPT}".replace(START, "").split()
    return word_tokenizer(special, words, special, {"eos_token": END, "pad_token": PAD})


def build(**changes: Any) -> Harmon:
    """Build ``harmon_tiny`` with random weights and perhaps changed options; seed torch's generator first."""
    tokenizer = build_tokenizer()
    ids = tokenizer.convert_tokens_to_ids
    autoencoder: dict[str, Any] = {"ch": 32, "ch_mult": [1, 1, 2], "num_res_blocks": 1, "z_channels": CHANNELS}
    config = {
        "llm": {
            "vocab_size": len(tokenizer),
            "hidden_size": WIDTH,
            "intermediate_size": 256,
            "num_hidden_layers": 5,
            "num_attention_heads": HEADS,
            "num_key_value_heads": HEADS // 2,
            "max_position_embeddings": 256,
            "initializer_range": 0.05,
            "rope_theta": 10000.0,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": True,
            "eos_token_id": ids(END),
            "pad_token_id": ids(PAD),
        },
        "mar": {
            "img_size": IMAGE_SIZE,
            "vae_stride": 4,
            "patch_size": 1,
            "encoder_embed_dim": WIDTH,
            "encoder_depth": LAYERS,
            "encoder_num_heads": HEADS,
            "decoder_embed_dim": WIDTH,
            "decoder_depth": LAYERS,
            "decoder_num_heads": HEADS,
            "mlp_ratio": 3,
            "vae_embed_dim": CHANNELS,
            "mask_ratio_min": 0.7,
            "class_num": 1,
            "attn_dropout": 0.0,
            "proj_dropout": 0.0,
            "buffer_size": BUFFERS,
            "diffloss_d": 3,
            "diffloss_w": 128,
            "num_sampling_steps": "25",
            "diffusion_batch_mul": 4,
        },
        "vae": autoencoder,
        "vae_scale": 1.0,  # see prepare_next_stage
    }
    sizes = Kl16Sizes(**{**autoencoder, "ch_mult": tuple(autoencoder["ch_mult"])})
    return Harmon(HarmonNetwork(config, sizes), config, tokenizer, options_of("harmon_tiny", **changes))


# -- pre-training (tools/tiny_bases/short_recipe.py) -------------------------------------------------------------

RECIPE_CHANGES = {"autoencoder_steps": 700, "tag_steps": 400, "reading_steps": 600, "drawing_steps": 400}
"""What differs from the short recipe's defaults: understanding rests on the latents, and a step costs twice as much."""


def autoencoder(model: Harmon) -> nn.Module:
    """Return KL16."""
    return model.network.vae


def reconstruct(model: Harmon, images: Tensor) -> tuple[Tensor, Tensor]:
    """Encode and decode with KL16, by the mode of its posteriors; in training a little noise is added."""
    latents = model.network.vae.encode(images.contiguous()).latent_dist.mode()
    noise = LATENT_NOISE * torch.randn_like(latents) if model.network.vae.training else 0.0
    decoded: Tensor = model.network.vae.decode((latents + noise).contiguous()).sample
    return decoded, statistics_loss(latents)


@torch.no_grad()
def prepare_next_stage(model: Harmon, images: Tensor) -> None:
    """Set ``vae_scale`` so that latents have unit variance."""
    deviation = float(model.network.vae.encode(images.contiguous()).latent_dist.mode().std())
    model.network.vae_scale = model.config["vae_scale"] = 1 / deviation


def learns_understanding(name: str) -> bool:
    """MAR's encoder, the projector into the language model, and the language model."""
    return name.startswith(("network.llm.", *(f"network.{part}" for part in ENCODER_PREFIXES)))


def learns_generation(name: str) -> bool:
    """All parameters except the autoencoder's and the unused class table."""
    return not name.startswith(("network.vae.", f"network.{CLASS_EMBEDDING}"))
