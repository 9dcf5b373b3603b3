"""Harmon's checkpoints, in both published layouts.

*Whole* (``wusize/Harmon-1_5B``): ``config.json`` with the entries ``llm`` and ``mar``, all weights
(``model.safetensors``, or shards with an index), tokenizer.

*In parts* (``wusize/harmon``, RecA's): ``harmon_1.5b.pth`` without autoencoder and without sizes. The autoencoder is
``kl16.ckpt``; the sizes of the language model and the tokenizer are Qwen2.5's; MAR's follow from the shapes.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.initialization import no_init_weights

from reca.models.autoencoder_kl import Kl16Sizes
from reca.models.harmon.network import CLASS_EMBEDDING, LM_HEAD, VAE, HarmonNetwork, from_official_state
from reca.models.weights import choose_weights, load_strictly, read_json, read_weights

HEADS_BY_WIDTH = {768: 12, 1024: 16, 1280: 16}
"""Attention heads of MAR-Base, -Large and -Huge: the one size that no shape shows."""
PARTS = frozenset({"llm", "vae", "tokenizer"})
IGNORED = ("vae.loss.*", "*.rotary_emb.inv_freq")
"""Unused tensors of some files: the autoencoder's training loss, a table that old releases stored."""
_RUNTIME_KEYS = ("attn", "dtype", "_name_or_path", "architectures", "transformers_version", "use_cache", "auto_map")
"""Prefixes of ``llm`` keys that configure the runtime, not the sizes."""


def load_network(
    folder: Path, parts: Mapping[str, str], weights: str | None = None
) -> tuple[HarmonNetwork, dict[str, Any]]:
    """Return a checkpoint's network, in the dtype of its weights, and its configuration.

    Args:
        folder: Checkpoint in one of the two layouts.
        parts: ``llm`` (folder with Qwen2.5's config.json) and ``vae`` (``kl16.ckpt``, or its folder), where
            ``folder`` lacks them; ``tokenizer`` is the caller's.
        weights: File name of the weights in ``folder``, if it has several.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file is damaged, or the parts do not fit together.
    """
    if unknown := sorted(parts.keys() - PARTS):
        raise ValueError(f"unknown part {unknown[0]!r} of model.parts; Harmon's are {', '.join(sorted(PARTS))}")
    path = folder / "config.json"
    if not path.is_file() and "llm" not in parts:
        raise FileNotFoundError(f"{path} is missing: for a .pth alone, set model.parts.llm to its Qwen2.5")
    config = read_json(path) if path.is_file() else {}
    state = read_weights(choose_weights(folder, weights))
    if not any(key.startswith(VAE) for key in state):
        state |= {VAE + key: value for key, value in _read_autoencoder(folder, parts).items()}
    official_vae = {key.removeprefix(VAE): value for key, value in state.items() if key.startswith(VAE)}
    try:
        autoencoder = Kl16Sizes.of(official_vae)
        config = {
            **config,
            "llm": _llm_config(config.get("llm") or {}, parts),
            "mar": complete_mar_config(config.get("mar") or {}, state, autoencoder),
        }
        with no_init_weights():
            network = HarmonNetwork(config, autoencoder)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder}: {error}") from None
    may_lack = [CLASS_EMBEDDING] + ([LM_HEAD] if network.llm.config.tie_word_embeddings else [])
    renamed = from_official_state(state)
    load_strictly(network, renamed, folder, may_lack, IGNORED)
    if CLASS_EMBEDDING not in renamed:
        torch.nn.init.zeros_(network.mar.class_emb.weight)
    network.llm.tie_weights()
    return network, config


def complete_mar_config(
    config: Mapping[str, Any], state: Mapping[str, Tensor], autoencoder: Kl16Sizes
) -> dict[str, Any]:
    """Complete the ``mar`` entry of config.json by the shapes of the weights.

    Raises:
        ValueError: The weights are not MAR's, or a width is not that of a published size and its heads are not given.
    """
    try:
        channels = state["mar.z_proj.weight"].shape[1]
        positions = state["mar.encoder_pos_embed_learned"].shape[1]
        tokens = state["mar.diffusion_pos_embed_learned"].shape[1]
        sizes = {
            "vae_stride": autoencoder.stride,
            "patch_size": round((channels / autoencoder.z_channels) ** 0.5),
            "encoder_embed_dim": state["mar.encoder_norm.weight"].shape[0],
            "encoder_depth": _depth(state, "mar.encoder_blocks."),
            "decoder_embed_dim": state["mar.decoder_norm.weight"].shape[0],
            "decoder_depth": _depth(state, "mar.decoder_blocks."),
            "vae_embed_dim": autoencoder.z_channels,
            "diffloss_d": _depth(state, "mar.diffloss.net.res_blocks."),
            "diffloss_w": state["mar.diffloss.net.input_proj.weight"].shape[0],
            "buffer_size": positions - tokens,
        }
    except KeyError as error:
        raise ValueError(f"these are not Harmon's weights: {error} is missing") from None
    sizes["img_size"] = round(tokens**0.5) * sizes["vae_stride"] * sizes["patch_size"]
    if CLASS_EMBEDDING in state:
        sizes["class_num"] = state[CLASS_EMBEDDING].shape[0]
    completed = dict(config)
    for name, size in sizes.items():
        completed.setdefault(name, size)
    for half in ("encoder", "decoder"):
        width = completed[f"{half}_embed_dim"]
        if f"{half}_num_heads" not in completed:
            if width not in HEADS_BY_WIDTH:
                raise ValueError(f"config.json must have mar.{half}_num_heads: no published MAR has width {width}")
            completed[f"{half}_num_heads"] = HEADS_BY_WIDTH[width]
    return completed


def _depth(state: Mapping[str, Tensor], prefix: str) -> int:
    indices = (int(key.removeprefix(prefix).split(".")[0]) for key in state if key.startswith(prefix))
    return 1 + max(indices, default=-1)


def _llm_config(config: Mapping[str, Any], parts: Mapping[str, str]) -> dict[str, Any]:
    """Sizes of the language model: the checkpoint's own, or those of ``parts["llm"]``."""
    if "hidden_size" not in config:
        if "llm" not in parts:
            raise ValueError(
                "config.json has no llm entry with sizes; set model.parts.llm to the folder of the Qwen2.5 that the "
                "checkpoint was made from"
            )
        config = read_json(Path(parts["llm"]) / "config.json")
    return {
        key: value for key, value in config.items() if not key.startswith(_RUNTIME_KEYS) and not key.endswith("dtype")
    }


def _read_autoencoder(folder: Path, parts: Mapping[str, str]) -> dict[str, Tensor]:
    path = Path(parts.get("vae", folder / "kl16.ckpt"))
    path = path / "kl16.ckpt" if (path / "kl16.ckpt").is_file() else path
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is missing: the weights of {folder} hold no autoencoder (vae.*); put kl16.ckpt of wusize/harmon "
            "there, or set model.parts.vae to it"
        )
    return {key.removeprefix(VAE): value for key, value in read_weights(path).items()}
