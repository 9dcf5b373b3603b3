"""BAGEL's official folder: ``llm_config.json``, ``vit_config.json``, weights, ``ae.safetensors``, tokenizer files.

The weights are ``ema.safetensors`` in ByteDance's repository, whose ``model.safetensors.index.json`` lists them and the
autoencoder's, ``model_bf16.safetensors`` in RecA's and ``model.safetensors`` in the output of trainers; each may be in
shards. Sizes that the JSON files leave out follow from the shapes of the weights.
"""

import re
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
from reca.runtime.files import write_json

LLM, VIT, AUTOENCODER, AUTOENCODER_SCALE = "llm_config.json", "vit_config.json", "ae.safetensors", "ae_config.json"
STEMS = ("model", "model_bf16", "ema")
"""Live weights before averaged ones: after RecA's thousand steps 90 % of the average are the base model."""
MAX_LATENT_SIZE = 64
"""The released model's; used for a checkpoint without its position table."""
POSITION_TABLES = ("latent_pos_embed.pos_embed", "vit_pos_embed.pos_embed")
"""Fixed tables, which trainers leave out; they are computed again."""
UNUSED = ("*.rotary_emb.inv_freq",)
"""Constants in the files of old versions."""


@dataclass(frozen=True)
class Configs:
    """Contents of the folder's JSON files."""

    llm: dict[str, Any]
    vit: dict[str, Any]

    def text(self) -> Qwen2Config:
        """Return the language model's sizes; queries and keys are always normalised, the head is never tied."""
        return Qwen2Config(**{**self.llm, "qk_norm": True, "tie_word_embeddings": False})

    def vision(self) -> SiglipVisionConfig:
        """Return the vision tower's sizes without its last layer: BAGEL uses the output of the layer before."""
        return SiglipVisionConfig(**{**self.vit, "num_hidden_layers": self.vit["num_hidden_layers"] - 1})


@dataclass(frozen=True)
class BagelFiles:
    """Contents of a folder."""

    configs: Configs
    state: dict[str, Tensor]
    autoencoder: AutoencoderKL
    weights: Path
    """File of ``state``, or the index of its shards."""
    tokenizer: Path
    """Folder with the tokenizer."""

    @property
    def stem(self) -> str:
        """File name of the weights without number and extensions; an index may have another one than its files."""
        is_index = self.weights.name.endswith(".index.json")
        names = set(read_json(self.weights)["weight_map"].values()) if is_index else {self.weights.name}
        return re.sub(r"(-\d+-of-\d+)?\.\w+$", "", min(names - {AUTOENCODER}))


def read_checkpoint(folder: Path, base: Path | None = None) -> BagelFiles:
    """Read an official folder.

    Args:
        folder: Folder with the weights.
        base: Complete folder for files that ``folder`` lacks: RecA's repositories hold weights only.

    Raises:
        FileNotFoundError: A file is in neither folder.
        ValueError: A file is damaged.
    """
    configs = Configs(read_json(_locate(LLM, folder, base)), read_json(_locate(VIT, folder, base)))
    autoencoder_file = _locate(AUTOENCODER, folder, base)
    weights = find_weights(folder, STEMS)
    autoencoder_state = read_weights(autoencoder_file)
    state = read_weights(weights)
    if base is not None and not any(name.startswith("vit_model.") for name in state):
        # Trainers that froze the vision tower may have left it out.
        state = {**read_weights(find_weights(base, STEMS)), **state}
    state = {name: value for name, value in state.items() if name not in autoencoder_state}
    scale_file = autoencoder_file.parent / AUTOENCODER_SCALE
    scale = read_json(scale_file) if scale_file.is_file() else {}
    autoencoder = flux_autoencoder.load_autoencoder(
        autoencoder_state,
        autoencoder_file,
        scale.get("scale_factor", flux_autoencoder.SCALE),
        scale.get("shift_factor", flux_autoencoder.SHIFT),
    )
    tokenizer = _locate("tokenizer_config.json", folder, base).parent
    return BagelFiles(configs, state, autoencoder, weights, tokenizer)


def write_checkpoint(
    folder: Path, configs: Configs, network: BagelNetwork, autoencoder: AutoencoderKL, stem: str, sharded: bool
) -> None:
    """Write all files but the tokenizer's into an existing folder."""
    for name, config in ((LLM, configs.llm), (VIT, configs.vit)):
        write_json(folder / name, config)
    write_weights(network.state_dict(), folder, stem, sharded)
    write_weights(flux_autoencoder.official_state(autoencoder), folder, "ae")
    scale, shift = autoencoder.config.scaling_factor, autoencoder.config.shift_factor
    if (scale, shift) != (flux_autoencoder.SCALE, flux_autoencoder.SHIFT):
        values = {"scale_factor": scale, "shift_factor": shift}
        write_json(folder / AUTOENCODER_SCALE, values)


def load_network(
    state: Mapping[str, Tensor],
    text: Qwen2Config,
    vision: SiglipVisionConfig,
    latent_channels: int,
    markers: Markers,
    source: Path | str,
    connector_act: str = "gelu_pytorch_tanh",
) -> BagelNetwork:
    """Return a network with these weights, in their dtype; missing position tables are computed.

    Raises:
        ValueError: Keys are missing or unexpected, or sizes differ.
    """
    state = dict(state)
    for name in ("vae2llm.weight", "time_embedder.mlp.0.weight"):
        if name not in state:
            raise ValueError(f"{source} is not a BAGEL checkpoint: it has no {name}")
    patch = "vit_model.vision_model.embeddings.patch_embedding.weight"
    if patch in state and state[patch].dim() == 4:  # a convolution, as SigLIP's own files have it
        state[patch] = state[patch].permute(0, 2, 3, 1).flatten(1)
    latents, patches = (isqrt(len(state[name])) if name in state else None for name in POSITION_TABLES)
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
    for name, side in zip(POSITION_TABLES, (sizes.max_latent_size, sizes.vision_side), strict=True):
        if name not in state:
            state[name] = sincos_table(side, text.hidden_size)
    with torch.device("meta"):
        network = BagelNetwork(sizes, markers)
    load_strictly(network, state, source, may_ignore=UNUSED)
    return network


def _locate(name: str, folder: Path, base: Path | None) -> Path:
    for candidate in (folder, base):
        if candidate is not None and (candidate / name).is_file():
            return candidate / name
    also = f" nor in {base}" if base else "; name a complete BAGEL folder as model.parts.base if this one is not"
    raise FileNotFoundError(f"{folder / name} is missing{also}")
