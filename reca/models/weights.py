"""Weights on disk: one file or many, safetensors or torch's own; and a strict account of what fits a network.

Layouts: ``model.safetensors`` as transformers and diffusers write it, the same in shards behind an ``.index.json``, and
``.pth``, ``.ckpt``, ``.pt``, ``.bin``, which are read with ``weights_only=True`` so that nothing in them is executed.
"""

import json
import pickle
import zipfile
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

STEMS = ("model", "diffusion_pytorch_model", "pytorch_model")
PICKLED = (".pth", ".ckpt", ".pt", ".bin")
WRAPPERS = ("state_dict", "model", "module")
"""Names under which trainers put the weights when they save more than these."""
SHARD_BYTES = 5 * 2**30
SHOWN_KEYS = 8


def find_weights(folder: Path, stems: Iterable[str] = STEMS) -> Path:
    """The weights file of a folder, or the index of its shards.

    Raises:
        FileNotFoundError: None of the known names is there.
    """
    stems = tuple(stems)
    names = [f"{stem}{end}" for stem in stems for end in (".safetensors.index.json", ".safetensors", *PICKLED)]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    some = ", ".join(f"{stem}.safetensors" for stem in stems)
    raise FileNotFoundError(f"{folder} holds no weights: none of {some} (or their .index.json) is there")


def read_weights(place: Path) -> dict[str, Tensor]:
    """All tensors of a file, of an ``.index.json`` with its shards, or of the folder that holds one of these.

    Raises:
        FileNotFoundError: The file or one of its shards is missing.
        ValueError: A file is truncated, is something else, or lacks keys that its index promises.
    """
    if place.is_dir():
        return read_weights(find_weights(place))
    if not place.is_file():
        raise FileNotFoundError(f"{place} is missing")
    if place.name.endswith(".index.json"):
        return _read_shards(place)
    if place.suffix == ".safetensors":
        try:
            return load_file(place)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{place} cannot be read ({error}): fetch or write it again") from None
    if place.suffix in PICKLED:
        return _read_pickled(place)
    raise ValueError(f"{place}: weights end in .safetensors, .index.json, {', '.join(PICKLED)}")


def _read_shards(index: Path) -> dict[str, Tensor]:
    try:
        places: dict[str, str] = json.loads(index.read_text())["weight_map"]
    except (json.JSONDecodeError, KeyError) as error:
        raise ValueError(f"{index} is no index of shards ({error!r}): fetch or write it again") from None
    state: dict[str, Tensor] = {}
    for name in sorted(set(places.values())):
        if not (index.parent / name).is_file():
            raise FileNotFoundError(f"{index.parent / name} is missing, a shard that {index.name} names")
        state |= read_weights(index.parent / name)
    if absent := sorted(places.keys() - state.keys()):
        raise ValueError(f"{index} promises keys that its shards lack: {_some(absent)}")
    return state


def _read_pickled(path: Path) -> dict[str, Tensor]:
    try:
        # Views of the file, as safetensors gives them; the format from before torch 1.6 has none.
        content: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path} cannot be read as weights ({first}): fetch it again") from None
    while isinstance(content, Mapping) and not any(isinstance(value, Tensor) for value in content.values()):
        inner = next((content[name] for name in WRAPPERS if name in content), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a mapping of names to tensors")
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a checkpoint.

    Raises:
        FileNotFoundError: The file is missing.
        ValueError: It holds something else.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no JSON ({error}): fetch or write it again") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not an object")
    return content


def write_weights(state: Mapping[str, Tensor], folder: Path, stem: str = "model") -> None:
    """Write ``<stem>.safetensors``, or shards of at most 5 GiB and their index; keys in order, so bytes repeat."""
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        if tensor.untyped_storage().nbytes() != tensor.nbytes:  # part of a larger tensor: safetensors refuses these
            tensor = tensor.clone()
        if shards[-1] and size + tensor.nbytes > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    metadata = {"format": "pt"}
    names = [f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    if len(shards) == 1:
        names = [f"{stem}.safetensors"]
    for name, shard in zip(names, shards, strict=True):
        save_file(shard, folder / name, metadata)
        (folder / name).chmod(0o644)
    if len(shards) > 1:
        places = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
        total = sum(tensor.nbytes for shard in shards for tensor in shard.values())
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def load_strictly(
    network: nn.Module,
    state: Mapping[str, Tensor],
    source: Path | str,
    may_lack: Iterable[str] = (),
    may_ignore: Iterable[str] = (),
) -> None:
    """Put a state dict into a network, and account for every key.

    Args:
        network: Its own names must be those of ``state``; parameters take the file's dtype and memory.
        state: Names and tensors.
        source: Where they come from, for messages.
        may_lack: Patterns (``fnmatch``) of keys that the file is known to lack.
        may_ignore: Patterns of keys that the file is known to have beyond the network.

    Raises:
        ValueError: Other keys are missing or unexpected, or sizes differ.
    """
    lacking, beyond = tuple(may_lack), tuple(may_ignore)
    own = network.state_dict()
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    wrong = {
        "missing": [key for key in missing if not _any_match(key, lacking)],
        "unexpected": [key for key in unexpected if not _any_match(key, beyond)],
        "of another size": [
            f"{key} {tuple(state[key].shape)}, expected {tuple(own[key].shape)}"
            for key in sorted(own.keys() & state.keys())
            if own[key].shape != state[key].shape
        ],
    }
    if any(wrong.values()):
        found = "; ".join(f"{len(keys)} {kind}: {_some(keys)}" for kind, keys in wrong.items() if keys)
        raise ValueError(f"the weights of {source} do not fit their config: {found}")
    fitting = {key: state[key] for key in own if key in state}
    network.load_state_dict(fitting, strict=False, assign=True)


def _any_match(key: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)


def _some(keys: list[str]) -> str:
    more = f" and {len(keys) - SHOWN_KEYS} more" if len(keys) > SHOWN_KEYS else ""
    return ", ".join(keys[:SHOWN_KEYS]) + more
