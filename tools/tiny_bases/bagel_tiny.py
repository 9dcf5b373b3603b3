"""``bagel_tiny``: a small BAGEL, its word tokenizer, and its hooks for the short recipe."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from reca.models.bagel.autoencoder import decode, empty_autoencoder, encode, sample_latents
from reca.models.bagel.checkpoint import Configs
from reca.models.bagel.model import GENERATION_PREFIXES, MARKERS, Bagel
from reca.models.bagel.network import BagelNetwork, Markers, Sizes
from tools.tiny_bases.latents import LATENT_NOISE, statistics_loss
from tools.tiny_bases.presets import UNKNOWN, options_of, word_tokenizer

PAD = "<|endoftext|>"
IMAGE_SIZE, PATCH = 24, 6
"""Pixels per side, and per patch of the vision tower: 16 tokens per image, as in ``janus_tiny``."""
AUTOENCODER, LATENT_CHANNELS, LATENT_PATCH = (32, 64), 4, 2
"""Channels of two resolutions: 24 pixels become 12 x 12 latents, hence 6 x 6 latent tokens."""
WIDTH, HEADS, VISION_WIDTH, LAYERS, VISION_LAYERS = 96, 4, 96, 5, 4
INITIAL_RANGE = 0.05
"""Standard deviation of the first weights; the default embeddings, of 1, drown what small models learn."""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build a tokenizer with a token per word, and BAGEL's own markers."""
    special = [UNKNOWN, PAD, *MARKERS]
    return word_tokenizer(special, [], special, {"eos_token": MARKERS[1], "pad_token": PAD})


def build(**changes: Any) -> Bagel:
    """Build ``bagel_tiny`` with random weights and perhaps changed options; seed torch's generator first."""
    tokenizer = build_tokenizer()
    configs = Configs(llm=_llm(len(tokenizer)), vit=_vit())
    sizes = Sizes(
        text=configs.text(),
        vision=configs.vision(),
        latent_patch=LATENT_PATCH,
        latent_channels=LATENT_CHANNELS,
        max_latent_size=IMAGE_SIZE // 2 ** (len(AUTOENCODER) - 1) // LATENT_PATCH,
        vision_side=IMAGE_SIZE // PATCH,
        time_waves=64,
    )
    network = BagelNetwork(sizes, Markers(*tokenizer.convert_tokens_to_ids(list(MARKERS))))
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=INITIAL_RANGE)
    autoencoder = empty_autoencoder(AUTOENCODER, 1, LATENT_CHANNELS)
    return Bagel(network, autoencoder, tokenizer, options_of("bagel_tiny", **changes), configs).eval()


def _llm(vocabulary: int) -> dict[str, Any]:
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "vocab_size": vocabulary,
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS // 2,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
    }


def _vit() -> dict[str, Any]:
    """Sizes of the vision tower, including the last layer that BAGEL does not use."""
    return {
        "hidden_size": VISION_WIDTH,
        "intermediate_size": 2 * VISION_WIDTH,
        "num_hidden_layers": VISION_LAYERS + 1,
        "num_attention_heads": HEADS,
        "num_channels": 3,
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
    }


# -- pre-training (tools/tiny_bases/short_recipe.py) -------------------------------------------------------------

RECIPE_CHANGES: dict[str, int] = {}
"""Differences from the short recipe's defaults."""


def autoencoder(model: Bagel) -> nn.Module:
    """Return FLUX's autoencoder."""
    return model.autoencoder


def reconstruct(model: Bagel, images: Tensor) -> tuple[Tensor, Tensor]:
    """Encode and decode with FLUX's autoencoder.

    Its file holds no scale, so a loss brings latents to unit variance, and another their posteriors to a small one.
    """
    vae = model.autoencoder
    moments = encode(vae, images)
    noise = torch.randn_like(moments.chunk(2, 1)[0]) if vae.training else torch.zeros(())
    mode = sample_latents(vae, moments, torch.zeros(()))
    log_variance = 2 * math.log(LATENT_NOISE / vae.config.scaling_factor)
    spread = (moments.chunk(2, 1)[1] - log_variance).pow(2).mean()
    return decode(vae, sample_latents(vae, moments, noise)), statistics_loss(mode) + 0.01 * spread


def prepare_next_stage(model: Bagel, images: Tensor) -> None:
    """Initialize the generation expert with the understanding expert's weights; the latents' scale is fixed."""
    state = model.network.state_dict()
    with torch.no_grad():
        for name, parameter in model.network.named_parameters():
            if "_moe_gen." in name:
                parameter.copy_(state[name.replace("_moe_gen.", ".")])


def learns_understanding(name: str) -> bool:
    """Understanding expert, vision tower and its connector."""
    return name.startswith("network.") and "_moe_gen." not in name and not name.startswith(GENERATION_PREFIXES)


def learns_generation(name: str) -> bool:
    """Both experts, because the understanding expert has to learn captions; not the vision tower."""
    return name.startswith("network.") and not name.startswith(("network.vit_model.", "network.connector."))
