"""Checkpoints of OpenUni on disk, in two layouts.

*Whole*: one folder with ``config.json`` (the networks' own configurations side by side), the weights of all parts under
their official names, and the tokenizer. This is what we write.

*Official*: the trained weights are one file of ``wusize/openuni`` or ``sanaka87/OpenUni-RecA``, and the parts that it
was built on lie elsewhere, each in its own repository's layout:

=========  ====================================================  ==========================================
part       repository                                            read from it
=========  ====================================================  ==========================================
``lmm``    ``OpenGVLab/InternVL3-1B`` or ``-2B``                 config, weights, tokenizer
``sana``   ``Efficient-Large-Model/Sana_*_diffusers``            ``transformer/``, ``scheduler/``, ``vae/``
``vae``    ``mit-han-lab/dc-ae-f32c32-sana-1.1-diffusers``       config, weights; optional, else ``sana/vae``
=========  ====================================================  ==========================================

The trained file is laid over the parts, so it may hold all of the model or only what was trained.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from reca.models.openuni.network import CONNECTOR_HEAD_SIZE
from reca.models.weights import PICKLED, find_weights, read_json, read_weights

PARTS = ("lmm", "sana", "vae")


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint says about itself."""

    config: dict[str, Any]
    """As :class:`reca.models.openuni.network.OpenUniNetwork` takes it."""
    state: dict[str, Tensor]
    """Official names -> tensors."""
    tokenizer: Path
    """Folder of the tokenizer's files."""
    source: Path
    """The weights file, for messages."""


def read_checkpoint(folder: Path, parts: Mapping[str, Path], weights: str | None = None) -> Checkpoint:
    """Read either layout.

    Args:
        folder: Where the trained weights lie.
        parts: Folders of the parts, for the official layout.
        weights: Name of the trained file, where the folder has several.

    Raises:
        FileNotFoundError: A file of the layout is missing.
        ValueError: A file cannot be read, or does not hold what it should.
    """
    if unknown := sorted(parts.keys() - set(PARTS)):
        raise ValueError(f"model.parts: unknown part {unknown[0]!r}; OpenUni's parts are {', '.join(PARTS)}")
    if parts:
        return _read_official(folder, parts, weights)
    config = read_json(folder / "config.json")
    if "lmm" not in config:
        raise ValueError(
            f"{folder / 'config.json'} describes no OpenUni (it lacks 'lmm'): set model.parts for its bases"
        )
    source = folder / weights if weights else find_weights(folder, ["model"])
    return Checkpoint(config, read_weights(source), folder, source)


def _read_official(folder: Path, parts: Mapping[str, Path], weights: str | None) -> Checkpoint:
    for name in ("lmm", "sana"):
        if name not in parts:
            raise ValueError(f"model.parts.{name} is not set: OpenUni's weights alone do not describe that part")
    vae = parts.get("vae", parts["sana"] / "vae")
    source = _trained_file(folder, weights)
    trained = read_weights(source)
    for key in ("meta_queries", "projector.weight", "connector.layers.0.mlp.fc1.weight"):
        if key not in trained:
            raise ValueError(f"{source} holds no {key!r}: these are not OpenUni's weights")
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
    places = {"lmm": parts["lmm"], "transformer": parts["sana"] / "transformer", "vae": vae}
    state: dict[str, Tensor] = {}
    for name, place in places.items():
        state |= {f"{name}.{key}": value for key, value in read_weights(place).items()}
    return Checkpoint(config, state | trained, parts["lmm"], source)


def _trained_file(folder: Path, weights: str | None) -> Path:
    if weights is not None:
        return folder / weights
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is missing: model.checkpoint is no folder")
    found = sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", *PICKLED))
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise FileNotFoundError(
            f"{folder} should hold one weights file and holds {names}: name it in model.options.weights"
        )
    return found[0]
