"""Models of every family built from sizes, without checkpoint, configuration file or download.

The classes are the project's own, so their dependencies (diffusers, in three of the five families) are needed; they are
imported when their family is built.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from reca.models.base import UnifiedModel
from tools.memory.sizes import Numbers

UNKNOWN, END = "<unk>", "<end>"


def build(family: str, numbers: Numbers, options: Mapping[str, Any], device: torch.device) -> UnifiedModel:
    """Build a model with freshly initialised float32 weights, in evaluation mode.

    Args:
        family: One of :data:`reca.models.loading.FAMILIES`.
        numbers: Sizes as in :mod:`tools.memory.sizes`.
        options: The family's options, from the ``model`` section of the configuration.
        device: Device of the weights; on ``meta`` they take no memory.

    Raises:
        ImportError: A package that the family's classes need is missing.
        ValueError: Sizes contradict each other.
    """
    with torch.device(device):
        return _BUILDERS[family](numbers, options).eval()


def words(special: Sequence[str]) -> PreTrainedTokenizerFast:
    """Build a tokenizer with one token per word: markers, and unknown for all others. Only lengths matter."""
    tokens = list(dict.fromkeys([UNKNOWN, END, *special]))
    tokenizer = Tokenizer(models.WordLevel({token: n for n, token in enumerate(tokens)}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(tokens)
    special_tokens = {"unk_token": UNKNOWN, "bos_token": END, "eos_token": END, "pad_token": UNKNOWN}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **special_tokens)


def _bagel(numbers: Numbers, options: Mapping[str, Any]) -> UnifiedModel:
    from transformers import Qwen2Config, SiglipVisionConfig

    from reca.models.bagel import model as family
    from reca.models.bagel.autoencoder import empty_autoencoder
    from reca.models.bagel.network import BagelNetwork, Markers, Sizes

    tokenizer = words(family.MARKERS)
    channels, blocks, latent_channels = numbers["autoencoder"]
    latent_side, vision_side = numbers["grids"]
    text, vision = Qwen2Config(**numbers["text"]), SiglipVisionConfig(**numbers["vision"])
    sizes = Sizes(text, vision, 2, latent_channels, max_latent_size=latent_side, vision_side=vision_side)
    network = BagelNetwork(sizes, Markers(*tokenizer.convert_tokens_to_ids(list(family.MARKERS))))
    return family.Bagel(network, empty_autoencoder(channels, blocks, latent_channels), tokenizer, options)


def _harmon(numbers: Numbers, options: Mapping[str, Any]) -> UnifiedModel:
    from reca.models.autoencoder_kl import Kl16Sizes
    from reca.models.harmon import model as family
    from reca.models.harmon.network import HarmonNetwork

    config = {"llm": {**numbers["llm"], "tie_word_embeddings": True}, "mar": numbers["mar"]}
    network = HarmonNetwork(config, Kl16Sizes(**numbers["vae"]))
    return family.Harmon(network, config, words(["<|im_start|>", family.END]), options)


def _janus(numbers: Numbers, options: Mapping[str, Any]) -> UnifiedModel:
    from transformers import JanusConfig, JanusForConditionalGeneration

    from reca.models.janus import model as family

    tokenizer = words([family.BOI, family.EOI, family.IMAGE, family.USER, family.ASSISTANT])
    vision = numbers["vision"]
    config = JanusConfig(
        text_config={"model_type": "llama", **numbers["text"], "pad_token_id": 0, "tie_word_embeddings": False},
        vision_config={
            **vision,
            "mlp_ratio": vision["intermediate_size"] / vision["hidden_size"],
            "num_image_tokens": (vision["image_size"] // vision["patch_size"]) ** 2,
            "depth": 2,
        },
        vq_config=dict(numbers["vq"]),
        image_token_id=tokenizer.convert_tokens_to_ids(family.IMAGE),
        tie_word_embeddings=False,
    )
    config.vq_config.num_patches = numbers["vq"]["num_patches"]  # transformers sets the vision tower's grid
    return family.Janus(JanusForConditionalGeneration(config), tokenizer, options)


def _openuni(numbers: Numbers, options: Mapping[str, Any]) -> UnifiedModel:
    from reca.models.openuni import model as family
    from reca.models.openuni.network import OpenUniNetwork

    tokenizer = words(
        [family.TURN_START, family.TURN_END, family.IMAGE_START, family.IMAGE_END, family.IMAGE, family.USER]
    )
    inner, layers, heads = numbers["connector"]
    width, size = numbers["llm"]["hidden_size"], numbers["vision"]["image_size"]
    config = {
        "lmm": {
            "vision_config": {**numbers["vision"], "qkv_bias": True},
            "llm_config": {**numbers["llm"], "pad_token_id": 0, "tie_word_embeddings": False},
            "downsample_ratio": 0.5,
            "ps_version": "v2",
            "select_layer": -1,
        },
        "connector": {
            "hidden_size": width,
            "intermediate_size": inner,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
        },
        "transformer": numbers["sana"],
        "vae": numbers["vae"],
        "sched": {"flow_shift": 3.0, "use_flow_sigmas": True, "prediction_type": "flow_prediction"},
        "num_queries": numbers["queries"],
        "vit_input_size": size,
    }
    return family.OpenUni(OpenUniNetwork(config), tokenizer, options)


def _showo(numbers: Numbers, options: Mapping[str, Any]) -> UnifiedModel:
    from transformers import CLIPVisionConfig, CLIPVisionModel, PhiConfig

    from reca.models.showo import model as family
    from reca.models.showo.autoencoder import Magvit, MagvitSizes
    from reca.models.showo.checkpoint import ShowoParts, build_vocabulary, empty_phi, empty_projector

    device = str(torch.get_default_device())
    sizes = MagvitSizes(*numbers["magvit"])
    text = numbers["phi"]["vocab_size"]
    config = {
        "w_clip_vit": numbers["clip"] is not None,
        "vocab_size": text + 10 + sizes.codebook + 1,
        "llm_vocab_size": text,
        "codebook_size": sizes.codebook,
        "num_vq_tokens": numbers["codes"],
    }
    phi = PhiConfig(**numbers["phi"], partial_rotary_factor=0.5, resid_pdrop=0.0)
    tokenizer = words([])
    parts = ShowoParts(
        config=config,
        phi=empty_phi(phi, config["vocab_size"], device=device),
        tokenizer=tokenizer,
        vocabulary=build_vocabulary(config, tokenizer.eos_token_id),
        magvit=Magvit(sizes),
    )
    if numbers["clip"] is not None:
        width, vision_width = numbers["phi"]["hidden_size"], numbers["clip"]["hidden_size"]
        parts.clip = CLIPVisionModel(CLIPVisionConfig(**numbers["clip"]))
        parts.projector = empty_projector(vision_width, width, width, device=device)
    return family.Showo(parts, options)


_BUILDERS = {"bagel": _bagel, "harmon": _harmon, "janus": _janus, "openuni": _openuni, "showo": _showo}
