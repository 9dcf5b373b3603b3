"""``openuni_tiny``: a small OpenUni, its word tokenizer, and its hooks for the long recipe."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from reca.models.base import Semantic
from reca.models.openuni.model import (
    GENERATE,
    IMAGE,
    IMAGE_END,
    IMAGE_START,
    TURN_END,
    TURN_START,
    UNCONDITIONAL,
    USER,
    OpenUni,
)
from reca.models.openuni.network import OpenUniNetwork
from tools.tiny_bases.latents import statistics_loss
from tools.tiny_bases.presets import UNKNOWN, options_of, word_tokenizer

PAD = "<|endoftext|>"
IMAGE_SIZE, PATCH = 24, 6
"""Pixels per side, and per patch, of which each is a token: 16 per image, as in ``janus_tiny``."""
LATENT_CHANNELS, LATENT_PATCH, QUERIES = 4, 4, 8
"""Query k has the facts of the k-th kind of shape."""
WIDTH, HEADS, VISION_WIDTH, CAPTION = 96, 4, 96, 96
AUTOENCODER = (32, 64)
"""Channels of DC-AE's levels: 24 pixels become 12 x 12 latents, hence 3 x 3 tokens of SANA."""
DECODER_NOISE = 0.3
"""Standard deviation of the noise on latents of variance 1 in training, because drawn latents are never exact."""


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
                "num_hidden_layers": 4,
                "num_attention_heads": HEADS,
                "num_key_value_heads": HEADS // 2,
                "max_position_embeddings": 256,
                "initializer_range": 0.05,
                "rope_theta": 100.0,  # texts have forty tokens
                "tie_word_embeddings": False,
                "eos_token_id": ids(TURN_END),
                "pad_token_id": ids(PAD),
            },
            "downsample_ratio": 1,
            "ps_version": "v2",
            "select_layer": -1,
            "force_image_size": IMAGE_SIZE,
        },
        "connector": {
            "hidden_size": WIDTH,
            "intermediate_size": 192,
            "num_hidden_layers": 1,
            "num_attention_heads": HEADS,
        },
        "transformer": _transformer(),
        "vae": _autoencoder(),
        "sched": {
            "num_train_timesteps": 1000,
            "flow_shift": 1.0,  # 3 is for large images
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
        "mlp_ratio": 2.0,
        "sample_size": IMAGE_SIZE // 2 ** (len(AUTOENCODER) - 1),
        "patch_size": LATENT_PATCH,
        "interpolation_scale": 1.0,  # position embeddings, as in SANA's 4K version
    }


def _autoencoder() -> dict[str, Any]:
    """DC-AE; for ``scaling_factor`` see :func:`scale_latents`."""
    blocks = ["ResBlock", "ResBlock"]
    scales: list[list[int]] = [[], []]
    return {
        "in_channels": 3,
        "latent_channels": LATENT_CHANNELS,
        "attention_head_dim": 16,
        "encoder_block_types": blocks,
        "decoder_block_types": blocks,
        "encoder_block_out_channels": list(AUTOENCODER),
        "decoder_block_out_channels": list(AUTOENCODER),
        "encoder_layers_per_block": [1, 1],
        "decoder_layers_per_block": [1, 1],
        "encoder_qkv_multiscales": scales,
        "decoder_qkv_multiscales": scales,
        "downsample_block_type": "conv",
        "upsample_block_type": "interpolate",
        "scaling_factor": 1.0,
    }


# -- pre-training (tools/tiny_bases/long_recipe.py) --------------------------------------------------------------


def reconstruct(model: OpenUni, images: Tensor) -> tuple[Tensor, Tensor]:
    """Encode and decode with DC-AE; in training a little noise is added to the latents."""
    scale = float(model.network.vae.config.scaling_factor)
    latents = model.network.vae.encode(images, return_dict=False)[0] * scale
    noise = DECODER_NOISE * torch.randn_like(latents) if model.network.vae.training else 0.0
    decoded: Tensor = model.network.vae.decode((latents + noise) / scale, return_dict=False)[0]
    return decoded, statistics_loss(latents)


@torch.no_grad()
def scale_latents(model: OpenUni, images: Tensor) -> None:
    """Set DC-AE's ``scaling_factor`` so that latents have unit variance."""
    deviation = float(model.network.vae.encode(images, return_dict=False)[0].std())
    model.network.config["vae"]["scaling_factor"] = 1 / deviation
    model.network.vae.register_to_config(scaling_factor=1 / deviation)


def learns_understanding(name: str) -> bool:
    """All of InternVL, and the queries."""
    return name.startswith(("network.lmm.", "network.meta_queries"))


def learns_generation(name: str) -> bool:
    """Connector, projector and SANA; InternVL and the queries are frozen."""
    return name.startswith(("network.connector.", "network.projector.", "network.transformer."))


def learns_patches(name: str) -> bool:
    """InternViT and its projector."""
    return name.startswith(("network.lmm.vision_model.", "network.lmm.mlp1."))


def states(model: OpenUni, texts: Sequence[str], semantic: Semantic | None = None) -> Tensor:
    """Return the states of the queries (B, Q, D)."""
    return model.network.query_states(*model.prompt_embeds(texts, semantic))


def word_states(model: OpenUni, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Return :func:`states` of captions, and the states of their words after half of the layers."""
    caught: list[Tensor] = []
    layers = model.network.lmm.language_model.model.layers
    hook = layers[len(layers) // 2 - 1].register_forward_hook(lambda layer, inputs, output: caught.append(output))
    try:
        queries = states(model, texts)
    finally:
        hook.remove()
    first = len(model.tokenizer(USER + GENERATE.format(""), add_special_tokens=False)["input_ids"])
    return queries, caught[0][:, first:]


def is_inner(name: str) -> bool:
    """Layers of InternViT, Qwen2, the connector and SANA."""
    return any(part in name for part in (".layer.", ".layers.", ".transformer_blocks."))
