"""Harmon's checkpoints, as they are published.

*Whole* (``wusize/Harmon-1_5B``): ``config.json`` with the entries ``llm`` and ``mar``, weights with everything in them
(``model.safetensors``, or shards behind an index), tokenizer.

*In parts* (``wusize/harmon``, RecA's): ``harmon_1.5b.pth`` without autoencoder and without sizes. The autoencoder is
``kl16.ckpt``; the sizes of the language model and the tokenizer are Qwen2.5's; those of MAR are read off the shapes.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.initialization import no_init_weights

from reca.models.autoencoder_kl import Kl16Sizes
from reca.models.harmon.network import TIED, UNUSED, VAE, HarmonNetwork, own_names
from reca.models.weights import PICKLED, find_weights, load_strictly, read_json, read_weights

HEADS = {768: 12, 1024: 16, 1280: 16}
"""Heads by width, of MAR-Base, -Large and -Huge: the one size that shapes do not tell."""
RESOLUTION_OF_POSITIONS, VAE_STRIDE = 256, 16
PARTS = frozenset({"llm", "vae", "tokenizer"})
IGNORED = ("vae.loss.*", "*.rotary_emb.inv_freq")
"""Known to be in some files, and of no use: the autoencoder's training loss, a table that old releases stored."""
_RUNTIME = ("attn", "dtype", "_name_or_path", "architectures", "transformers_version", "use_cache", "auto_map")
"""Beginnings or ends of ``llm`` keys that say how to run the network, not how large it is."""


def load_network(
    folder: Path, parts: Mapping[str, str], weights: str | None = None
) -> tuple[HarmonNetwork, dict[str, Any]]:
    """Return a checkpoint's network, in the dtype of its weights, and its configuration.

    Args:
        folder: One of the two layouts.
        parts: ``llm`` (folder with Qwen2.5's config.json) and ``vae`` (``kl16.ckpt``, or its folder), where
            ``folder`` lacks them; ``tokenizer`` is the caller's.
        weights: Name of the weights in ``folder``, where there are several.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file is damaged, or the parts do not fit together.
    """
    if unknown := sorted(parts.keys() - PARTS):
        raise ValueError(f"unknown part {unknown[0]!r} of model.parts; Harmon's are {', '.join(sorted(PARTS))}")
    path, config = folder / "config.json", {}
    if path.is_file():
        config = read_json(path)
    elif "llm" not in parts:
        raise FileNotFoundError(
            f"{path} is missing: it should hold the entries llm and mar; for a .pth checkpoint without it, set "
            "model.parts.llm to the folder of its Qwen2.5"
        )
    state = read_weights(_weights_file(folder, weights))
    if not any(key.startswith(VAE) for key in state):
        state |= {VAE + key: value for key, value in _read_autoencoder(folder, parts).items()}
    official = {key.removeprefix(VAE): value for key, value in state.items() if key.startswith(VAE)}
    try:
        autoencoder = Kl16Sizes.of(config.get("vae"), official)
        config = {
            **config,
            "llm": _language_model(config.get("llm") or {}, parts),
            "mar": complete_sizes(config.get("mar") or {}, state, autoencoder),
        }
        with no_init_weights():
            network = HarmonNetwork(config, autoencoder)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder}: {error}") from None
    may_lack = [UNUSED] + ([TIED] if network.llm.config.tie_word_embeddings else [])
    named = own_names(state)
    load_strictly(network, named, folder, may_lack, IGNORED)
    if UNUSED not in named:
        torch.nn.init.zeros_(network.mar.class_emb.weight)
    network.llm.tie_weights()
    return network, config


def complete_sizes(
    given: Mapping[str, Any], state: Mapping[str, Tensor], autoencoder: Kl16Sizes | None = None
) -> dict[str, Any]:
    """The ``mar`` entry of config.json, completed by what the shapes of the weights tell.

    Raises:
        ValueError: The weights are not MAR's, or a width is not that of a published size and its heads are not given.
    """
    sizes = dict(given)
    try:
        channels, places = state["mar.z_proj.weight"].shape[1], state["mar.encoder_pos_embed_learned"].shape[1]
        learnt = state["mar.diffusion_pos_embed_learned"].shape[1]
        width, depth_of = state["mar.encoder_norm.weight"].shape[0], _depth_of(state)
        of_decoder = state["mar.decoder_norm.weight"].shape[0]
        head_width = state["mar.diffloss.net.input_proj.weight"].shape[0]
    except KeyError as error:
        raise ValueError(f"the weights are no Harmon's: {error} is missing") from None
    of_latents = autoencoder.z_channels if autoencoder else channels
    found = {
        "vae_stride": autoencoder.stride if autoencoder else VAE_STRIDE,
        "patch_size": round((channels / of_latents) ** 0.5),
        "encoder_embed_dim": width,
        "encoder_depth": depth_of("mar.encoder_blocks"),
        "decoder_embed_dim": of_decoder,
        "decoder_depth": depth_of("mar.decoder_blocks"),
        "vae_embed_dim": of_latents,
        "diffloss_d": depth_of("mar.diffloss.net.res_blocks"),
        "diffloss_w": head_width,
        "buffer_size": places - learnt,
    }
    found["img_size"] = round(learnt**0.5) * found["vae_stride"] * found["patch_size"]
    if UNUSED in state:
        found["class_num"] = state[UNUSED].shape[0]
    for name, value in found.items():
        sizes.setdefault(name, value)
    for half in ("encoder", "decoder"):
        wide = sizes[f"{half}_embed_dim"]
        if f"{half}_num_heads" not in sizes:
            if wide not in HEADS:
                raise ValueError(f"mar.{half}_num_heads must stand in config.json: no published MAR is {wide} wide")
            sizes[f"{half}_num_heads"] = HEADS[wide]
    return sizes


def _depth_of(state: Mapping[str, Tensor]) -> Any:
    def depth(prefix: str) -> int:
        cut = len(prefix) + 1
        return 1 + max((int(key[cut:].split(".")[0]) for key in state if key.startswith(f"{prefix}.")), default=-1)

    return depth


def _language_model(given: Mapping[str, Any], parts: Mapping[str, str]) -> dict[str, Any]:
    """Sizes of the language model: those of the checkpoint's config.json if it has them, else those of Qwen2.5's."""
    if "hidden_size" not in given:
        if "llm" not in parts:
            raise ValueError(
                "config.json has no llm entry with sizes; set model.parts.llm to the folder of the Qwen2.5 that the "
                "checkpoint was made from"
            )
        given = read_json(Path(parts["llm"]) / "config.json")
    return {key: value for key, value in given.items() if not key.startswith(_RUNTIME) and not key.endswith("dtype")}


def _weights_file(folder: Path, name: str | None) -> Path:
    if name is not None:
        return folder / name
    try:
        return find_weights(folder)
    except FileNotFoundError as error:
        kinds = (".safetensors", *PICKLED)
        found = [p for p in sorted(folder.glob("*")) if p.suffix in kinds and not p.name.startswith("kl16")]
        if len(found) == 1:
            return found[0]
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            raise ValueError(
                f"{folder} holds {len(found)} sets of weights ({names}): choose one with model.options.weights"
            ) from None
        raise FileNotFoundError(f"{error}, nor a single .pth") from None


def _read_autoencoder(folder: Path, parts: Mapping[str, str]) -> dict[str, Tensor]:
    place = Path(parts["vae"]) if "vae" in parts else folder / "kl16.ckpt"
    if place.is_dir() and (place / "kl16.ckpt").is_file():
        place = place / "kl16.ckpt"
    if not place.exists():
        raise FileNotFoundError(
            f"{place} is missing: the weights of {folder} hold no autoencoder (vae.*); put kl16.ckpt of wusize/harmon "
            "there, or set model.parts.vae to it"
        )
    return {key.removeprefix(VAE): value for key, value in read_weights(place).items()}
