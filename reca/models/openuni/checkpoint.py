"""Checkpoints of OpenUni on disk, in two layouts.

*Whole*: one folder with ``config.json`` (the networks' own configurations side by side), the weights of all parts under
their official names, and the tokenizer. This is what we write; it needs no parts.

*Official*: the trained weights are one file of ``wusize/openuni`` or ``sanaka87/OpenUni-RecA``; the parts that it
extends are in folders of their own, each in its repository's layout:

=========  ====================================================  ==========================================
part       repository                                            files
=========  ====================================================  ==========================================
``lmm``    ``OpenGVLab/InternVL3-1B`` or ``-2B``                 config, weights, tokenizer
``sana``   ``Efficient-Large-Model/Sana_*_diffusers``            ``transformer/``, ``scheduler/``, ``vae/``
``vae``    ``mit-han-lab/dc-ae-f32c32-sana-1.1-diffusers``       config, weights; optional, else ``sana/vae``
=========  ====================================================  ==========================================

Keys of the trained file replace those of the parts, so it may hold the whole model or the trained parameters only.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from reca.models.openuni.network import CONNECTOR_HEAD_SIZE
from reca.models.weights import choose_weights, find_weights, read_json, read_weights

PARTS = ("lmm", "sana", "vae")


@dataclass(frozen=True)
class OpenUniFiles:
    """Contents of a checkpoint."""

    config: dict[str, Any]
    """Configuration of :class:`reca.models.openuni.network.OpenUniNetwork`."""
    state: dict[str, Tensor]
    """Tensors under official names."""
    tokenizer: Path
    """Folder of the tokenizer's files."""
    source: Path
    """The weights file, for messages."""


def read_checkpoint(folder: Path, parts: Mapping[str, Path], weights: str | None = None) -> OpenUniFiles:
    """Read either layout.

    Raises:
        FileNotFoundError: A file of the layout is missing.
        ValueError: A file cannot be read, or has other contents.
    """
    if unknown := sorted(parts.keys() - set(PARTS)):
        raise ValueError(f"model.parts: unknown part {unknown[0]!r}; OpenUni's parts are {', '.join(PARTS)}")
    path = folder / "config.json"
    config = read_json(path) if path.is_file() or not parts else {}
    if "lmm" in config:  # whole: the parts and the weights' name are those of the base that it was trained from
        source = find_weights(folder, ["model"])
        return OpenUniFiles(config, read_weights(source), folder, source)
    if not parts:
        raise ValueError(f"{path} does not describe an OpenUni (it lacks 'lmm'): set model.parts for its parts")
    return _read_official(folder, parts, weights)


def _read_official(folder: Path, parts: Mapping[str, Path], weights: str | None) -> OpenUniFiles:
    for name in ("lmm", "sana"):
        if name not in parts:
            raise ValueError(f"model.parts.{name} is not set: OpenUni's weights alone do not describe that part")
    vae = parts.get("vae", parts["sana"] / "vae")
    source = choose_weights(folder, weights)
    trained = read_weights(source)
    for key in ("meta_queries", "projector.weight", "connector.layers.0.mlp.fc1.weight"):
        if key not in trained:
            raise ValueError(f"{source} lacks {key!r}: these are not OpenUni's weights")
    lmm = read_json(parts["lmm"] / "config.json")
    if "llm_config" not in lmm:
        raise ValueError(
            f"{parts['lmm'] / 'config.json'} lacks 'llm_config': OpenUni needs InternVL3 as OpenGVLab released it, "
            "not the '-hf' copy"
        )
    inner, width = trained["connector.layers.0.mlp.fc1.weight"].shape
    config = {
        "lmm": lmm,
        "connector": {
            "hidden_size": width,
            "intermediate_size": inner,
            "num_hidden_layers": len({key.split(".")[2] for key in trained if key.startswith("connector.layers.")}),
            "num_attention_heads": width // CONNECTOR_HEAD_SIZE,
        },
        "transformer": read_json(parts["sana"] / "transformer/config.json"),
        "vae": read_json(vae / "config.json"),
        "sched": read_json(parts["sana"] / "scheduler/scheduler_config.json"),
        "num_queries": len(trained["meta_queries"]),
        "vit_input_size": lmm.get("force_image_size") or lmm["vision_config"]["image_size"],
    }
    folders = {"lmm": parts["lmm"], "transformer": parts["sana"] / "transformer", "vae": vae}
    state: dict[str, Tensor] = {}
    for name, path in folders.items():
        state |= {f"{name}.{key}": value for key, value in read_weights(path).items()}
    return OpenUniFiles(config, state | trained, parts["lmm"], source)
