"""BAGEL's official folder: ``llm_config.json``, ``vit_config.json``, weights, ``ae.safetensors``, tokenizer files.

The weights are ``ema.safetensors`` in ByteDance's repository, ``model_bf16.safetensors`` in RecA's and
``model.safetensors`` where trainers write; each may be in shards. What the JSON files do not say is told by the shapes
of the weights.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from transformers import Qwen2Config, SiglipVisionConfig

from reca.models.bagel import autoencoder as flux_autoencoder
from reca.models.bagel.network import BagelNetwork, Markers, Sizes
from reca.models.positions import sincos_table
from reca.models.weights import find_weights, load_strictly, read_json, read_weights, write_weights

LLM, VIT, AUTOENCODER, AUTOENCODER_SCALE = "llm_config.json", "vit_config.json", "ae.safetensors", "ae_config.json"
STEMS = ("model", "model_bf16", "ema")
"""Live weights before averaged ones: after RecA's thousand steps the average is nine tenths the base."""
MAX_LATENT_SIZE = 64
"""Of the released model; needed only where its table of positions was left out."""
TABLES = ("latent_pos_embed.pos_embed", "vit_pos_embed.pos_embed")
"""Trainers leave these out; they are computed anew."""
UNUSED = ("*.rotary_emb.inv_freq",)
"""Keys that old checkpoints carry without need."""


@dataclass(frozen=True)
class Configs:
    """The JSON files of a folder as they stand there."""

    llm: dict[str, Any]
    vit: dict[str, Any]

    def text(self) -> Qwen2Config:
        """Sizes of the language model; always with normalised queries and keys, and a head of its own."""
        return Qwen2Config(**{**self.llm, "qk_norm": True, "tie_word_embeddings": False})

    def vision(self) -> SiglipVisionConfig:
        """Sizes of the vision tower, without the last layer: BAGEL reads the one before it."""
        return SiglipVisionConfig(**{**self.vit, "num_hidden_layers": self.vit["num_hidden_layers"] - 1})


@dataclass(frozen=True)
class Checkpoint:
    """A folder's content, read."""

    configs: Configs
    state: dict[str, Tensor]
    autoencoder: AutoencoderKL
    weights: Path
    """Where ``state`` comes from; its name says how to write it back."""
    tokenizer: Path
    """Folder with the tokenizer."""

    @property
    def stem(self) -> str:
        """The name of the weights without its endings."""
        return self.weights.name.split(".")[0]


def read_checkpoint(folder: Path, base: Path | None = None) -> Checkpoint:
    """Read an official folder.

    Args:
        folder: With the weights.
        base: A complete folder for what the first lacks: RecA's repositories hold weights only.

    Raises:
        FileNotFoundError: A file is in neither folder.
        ValueError: A file is damaged.
    """
    configs = Configs(read_json(_locate(LLM, folder, base)), read_json(_locate(VIT, folder, base)))
    autoencoder_file = _locate(AUTOENCODER, folder, base)
    weights = find_weights(folder, STEMS)
    state = read_weights(weights)
    if base is not None and not any(name.startswith("vit_model.") for name in state):
        # Trainers that froze the vision tower may not have written it.
        state = {**read_weights(find_weights(base, STEMS)), **state}
    scale_file = autoencoder_file.parent / AUTOENCODER_SCALE
    scale = read_json(scale_file) if scale_file.is_file() else {}
    autoencoder = flux_autoencoder.load_autoencoder(
        read_weights(autoencoder_file),
        autoencoder_file,
        scale.get("scale_factor", flux_autoencoder.SCALE),
        scale.get("shift_factor", flux_autoencoder.SHIFT),
    )
    tokenizer = _locate("tokenizer_config.json", folder, base).parent
    return Checkpoint(configs, state, autoencoder, weights, tokenizer)


def write_checkpoint(
    folder: Path, configs: Configs, network: BagelNetwork, autoencoder: AutoencoderKL, stem: str
) -> None:
    """Write everything but the tokenizer into an existing folder."""
    for name, config in ((LLM, configs.llm), (VIT, configs.vit)):
        (folder / name).write_text(json.dumps(config, indent=2) + "\n")
    write_weights(network.state_dict(), folder, stem)
    write_weights(flux_autoencoder.official_state(autoencoder), folder, "ae")
    found = (autoencoder.config.scaling_factor, autoencoder.config.shift_factor)
    if found != (flux_autoencoder.SCALE, flux_autoencoder.SHIFT):
        scale = dict(zip(("scale_factor", "shift_factor"), found, strict=True))
        (folder / AUTOENCODER_SCALE).write_text(json.dumps(scale, indent=2) + "\n")


def load_network(
    state: Mapping[str, Tensor],
    text: Qwen2Config,
    vision: SiglipVisionConfig,
    latent_channels: int,
    markers: Markers,
    source: Path | str,
    connector_act: str = "gelu_pytorch_tanh",
) -> BagelNetwork:
    """A network with given weights, in their dtype; tables of positions that are missing are computed.

    Args:
        state: Weights under their official names.
        text: Sizes of the language model.
        vision: Sizes of the vision tower, with as many layers as there are weights for.
        latent_channels: Of the image autoencoder.
        markers: Ids of the marker tokens.
        source: Where the weights come from, for messages.
        connector_act: Activation between vision tower and language model.

    Raises:
        ValueError: Keys are missing or unexpected, or sizes differ.
    """
    state = dict(state)
    for name in ("vae2llm.weight", "time_embedder.mlp.0.weight"):
        if name not in state:
            raise ValueError(f"{source} is no BAGEL checkpoint: it has no {name}")
    patch = "vit_model.vision_model.embeddings.patch_embedding.weight"
    if patch in state and state[patch].dim() == 4:  # a convolution, as SigLIP's own files have it
        state[patch] = state[patch].permute(0, 2, 3, 1).flatten(1)
    latents, patches = (isqrt(len(state[name])) if name in state else None for name in TABLES)
    sizes = Sizes(
        text=text,
        vision=vision,
        latent_patch=isqrt(state["vae2llm.weight"].shape[1] // latent_channels),
        latent_channels=latent_channels,
        max_latent_size=latents or MAX_LATENT_SIZE,
        vision_side=patches or vision.image_size // vision.patch_size,
        connector_act=connector_act,
        time_waves=state["time_embedder.mlp.0.weight"].shape[1],
    )
    for name, side in zip(TABLES, (sizes.max_latent_size, sizes.vision_side), strict=True):
        if name not in state:
            state[name] = sincos_table(side, text.hidden_size)
    with torch.device("meta"):
        network = BagelNetwork(sizes, markers)
    load_strictly(network, state, source, may_ignore=UNUSED)
    return network


def _locate(name: str, folder: Path, base: Path | None) -> Path:
    for place in (folder, base):
        if place is not None and (place / name).is_file():
            return place / name
    also = f" nor in {base}" if base else "; name a complete BAGEL folder as model.parts.base if this one is not"
    raise FileNotFoundError(f"{folder / name} is missing{also}")
