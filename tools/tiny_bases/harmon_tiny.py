"""An empty Harmon with small numbers, and its word tokenizer."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from reca.models.autoencoder_kl import Kl16Sizes
from reca.models.harmon.model import ASSISTANT, DRAW, DRAW_ANYTHING, ENCODER, END, USER, Harmon
from reca.models.harmon.network import UNUSED, HarmonNetwork
from tools.tiny_bases.latents import LATENT_NOISE, statistics_loss
from tools.tiny_bases.presets import UNKNOWN, options_of, word_tokenizer

PAD, START = "<|endoftext|>", "<|im_start|>"
IMAGE_SIZE, CHANNELS, BUFFERS = 24, 16, 8
"""Pixels a side, channels of a latent, buffer tokens; 24 pixels become 6 x 6 latents."""
WIDTH, HEADS, LAYERS = 96, 4, 4


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, and Harmon's own turns."""
    special = [UNKNOWN, PAD, START, END]
    own = f"{USER} {ASSISTANT} {DRAW.format('')} {DRAW_ANYTHING}".replace(START, "").split()
    return word_tokenizer(special, own, special, {"eos_token": END, "pad_token": PAD})


def build(**changes: Any) -> Harmon:
    """A randomly initialised ``harmon_tiny``, perhaps with other options; seed torch's generator first."""
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
        "vae_scale": 1.0,  # set once the autoencoder is trained, so that latents have unit variance
    }
    sizes = Kl16Sizes(**{**autoencoder, "ch_mult": tuple(autoencoder["ch_mult"])})
    return Harmon(HarmonNetwork(config, sizes), config, tokenizer, options_of("harmon_tiny", **changes))


# -- how it is pre-trained (tools/tiny_bases/short_recipe.py) --------------------------------------------------------

RECIPE = {"autoencoder_steps": 700, "tag_steps": 400, "reading_steps": 600, "drawing_steps": 400}
"""What differs from the short recipe's defaults: understanding rests on the latents, and a step costs twice as much."""


def autoencoder(model: Harmon) -> nn.Module:
    """KL16."""
    return model.network.vae


def rebuild(model: Harmon, images: Tensor) -> tuple[Tensor, Tensor]:
    """Images after KL16, of whose posteriors Harmon takes the mode; while it is trained that is a little noisy."""
    latents = model.network.vae.encode(images.contiguous()).latent_dist.mode()
    noise = LATENT_NOISE * torch.randn_like(latents) if model.network.vae.training else 0.0
    drawn: Tensor = model.network.vae.decode((latents + noise).contiguous()).sample
    return drawn, statistics_loss(latents)


@torch.no_grad()
def settle(model: Harmon, images: Tensor) -> None:
    """Latents get unit variance by ``vae_scale``."""
    deviation = float(model.network.vae.encode(images.contiguous()).latent_dist.mode().std())
    model.network.vae_scale = model.config["vae_scale"] = 1 / deviation


def reads(name: str) -> bool:
    """MAR's encoder, the way into the language model, and that."""
    return name.startswith(("network.llm.", *(f"network.{part}" for part in ENCODER)))


def draws(name: str) -> bool:
    """Everything but the autoencoder and the unused class table."""
    return not name.startswith(("network.vae.", f"network.{UNUSED}"))
