"""``openuni_tiny``: a small OpenUni, its word tokenizer, and its hooks for the short recipe."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from reca.models.openuni.model import (
    GENERATE,
    IMAGE,
    IMAGE_END,
    IMAGE_START,
    TURN_END,
    TURN_START,
    UNCONDITIONAL,
    OpenUni,
)
from reca.models.openuni.network import OpenUniNetwork
from tools.tiny_bases.latents import LATENT_NOISE, statistics_loss
from tools.tiny_bases.presets import UNKNOWN, options_of, word_tokenizer

PAD = "<|endoftext|>"
IMAGE_SIZE, PATCH, FOLD = 24, 3, 2
"""Pixels per side, pixels per patch, patches per token (per side): 16 tokens per image, as in ``janus_tiny``."""
LATENT_CHANNELS, QUERIES = 8, 16
WIDTH, HEADS, VISION_WIDTH, CAPTION = 96, 4, 64, 96
AUTOENCODER = (16, 32, 64)
"""Channels of DC-AE's levels: 24 pixels become 6 x 6 latents."""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build a tokenizer with a token per word, and OpenUni's own turns."""
    special = [UNKNOWN, PAD, TURN_START, TURN_END, IMAGE_START, IMAGE_END, IMAGE]
    words = ["user", "assistant", *GENERATE.format("").split(), *UNCONDITIONAL.split()]
    return word_tokenizer(special, words, special, {"eos_token": TURN_END, "pad_token": PAD})


def build(**changes: Any) -> OpenUni:
    """Build ``openuni_tiny`` with random weights and perhaps changed options; seed torch's generator first."""
    tokenizer = build_tokenizer()
    ids = tokenizer.convert_tokens_to_ids
    config = {
        "lmm": {
            "vision_config": _vision(),
            "llm_config": {
                "architectures": ["Qwen2ForCausalLM"],
                "vocab_size": len(tokenizer),
                "hidden_size": WIDTH,
                "intermediate_size": 256,
                "num_hidden_layers": 5,
                "num_attention_heads": HEADS,
                "num_key_value_heads": HEADS // 2,
                "max_position_embeddings": 256,
                "initializer_range": 0.05,
                "rope_theta": 10000.0,
                "tie_word_embeddings": False,
                "eos_token_id": ids(TURN_END),
                "pad_token_id": ids(PAD),
            },
            "downsample_ratio": 1 / FOLD,
            "ps_version": "v2",
            "select_layer": -1,
            "force_image_size": IMAGE_SIZE,
        },
        "connector": {
            "hidden_size": WIDTH,
            "intermediate_size": 192,
            "num_hidden_layers": 2,
            "num_attention_heads": HEADS,
        },
        "transformer": _transformer(),
        "vae": _autoencoder(),
        "sched": {
            "num_train_timesteps": 1000,
            "flow_shift": 3.0,
            "use_flow_sigmas": True,
            "prediction_type": "flow_prediction",
        },
        "num_queries": QUERIES,
        "vit_input_size": IMAGE_SIZE,
        "image_token_id": ids(IMAGE),
    }
    return OpenUni(OpenUniNetwork(config), tokenizer, options_of("openuni_tiny", **changes))


def _vision() -> dict[str, Any]:
    return {
        "hidden_size": VISION_WIDTH,
        "intermediate_size": 3 * VISION_WIDTH,
        "num_hidden_layers": 4,
        "num_attention_heads": HEADS,
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH,
        "qkv_bias": True,
        "layer_norm_eps": 1e-6,
    }


def _transformer() -> dict[str, Any]:
    """SANA on the latents' grid."""
    head = 32
    return {
        "in_channels": LATENT_CHANNELS,
        "out_channels": LATENT_CHANNELS,
        "num_attention_heads": HEADS,
        "attention_head_dim": head,
        "num_layers": 4,
        "num_cross_attention_heads": HEADS,
        "cross_attention_head_dim": head,
        "cross_attention_dim": HEADS * head,
        "caption_channels": CAPTION,
        "mlp_ratio": 2.5,
        "sample_size": IMAGE_SIZE // 2 ** (len(AUTOENCODER) - 1),
        "patch_size": 1,
    }


def _autoencoder() -> dict[str, Any]:
    """DC-AE; for ``scaling_factor`` see :func:`prepare_next_stage`."""
    blocks, scales = ["ResBlock", "ResBlock", "EfficientViTBlock"], [[], [], [5]]
    return {
        "in_channels": 3,
        "latent_channels": LATENT_CHANNELS,
        "attention_head_dim": 16,
        "encoder_block_types": blocks,
        "decoder_block_types": blocks,
        "encoder_block_out_channels": list(AUTOENCODER),
        "decoder_block_out_channels": list(AUTOENCODER),
        "encoder_layers_per_block": [1, 1, 1],
        "decoder_layers_per_block": [1, 1, 1],
        "encoder_qkv_multiscales": scales,
        "decoder_qkv_multiscales": scales,
        "downsample_block_type": "conv",
        "upsample_block_type": "interpolate",
        "scaling_factor": 1.0,
    }


# -- pre-training (tools/tiny_bases/short_recipe.py) -------------------------------------------------------------

RECIPE_CHANGES: dict[str, int] = {}
"""Differences from the short recipe's defaults."""


def autoencoder(model: OpenUni) -> nn.Module:
    """Return DC-AE."""
    return model.network.vae


def reconstruct(model: OpenUni, images: Tensor) -> tuple[Tensor, Tensor]:
    """Encode and decode with DC-AE; in training a little noise is added to the latents."""
    scale = float(model.network.vae.config.scaling_factor)
    latents = model.network.vae.encode(images, return_dict=False)[0] * scale
    noise = LATENT_NOISE * torch.randn_like(latents) if model.network.vae.training else 0.0
    decoded: Tensor = model.network.vae.decode((latents + noise) / scale, return_dict=False)[0]
    return decoded, statistics_loss(latents)


@torch.no_grad()
def prepare_next_stage(model: OpenUni, images: Tensor) -> None:
    """Set DC-AE's ``scaling_factor`` so that latents have unit variance."""
    deviation = float(model.network.vae.encode(images, return_dict=False)[0].std())
    model.network.config["vae"]["scaling_factor"] = 1 / deviation
    model.network.vae.register_to_config(scaling_factor=1 / deviation)


def learns_understanding(name: str) -> bool:
    """All of InternVL."""
    return name.startswith("network.lmm.")


def learns_generation(name: str) -> bool:
    """Queries, connector, projector and SANA; InternVL is frozen."""
    return not name.startswith(("network.lmm.", "network.vae."))
