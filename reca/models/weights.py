"""Weights on disk, in one file or in shards, and loading them strictly.

Layouts: ``model.safetensors`` as transformers and diffusers write it, the same in shards behind an ``.index.json``, and
``.pth``, ``.ckpt``, ``.pt``, ``.bin``, read with ``weights_only=True``, which executes no code from the file.
"""

import json
import pickle
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from reca.runtime.files import atomic_file, write_json
from reca.runtime.hashing import PICKLED

STEMS = ("model", "diffusion_pytorch_model", "pytorch_model")
WRAPPERS = ("state_dict", "model", "module")
"""Keys of the weights in files that also hold other training state."""
SHARD_BYTES = 5 * 2**30
MAX_LISTED_KEYS = 8


def find_weights(folder: Path, stems: Sequence[str] = STEMS) -> Path:
    """Return the weights file of a folder, or the index of its shards.

    Raises:
        FileNotFoundError: The folder has none of the known names.
    """
    names = [f"{stem}{end}" for stem in stems for end in (".safetensors.index.json", ".safetensors", *PICKLED)]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    expected = ", ".join(f"{stem}.safetensors" for stem in stems)
    raise FileNotFoundError(f"{folder} has no weights: expected one of {expected}, or its .index.json")


def choose_weights(folder: Path, name: str | None = None) -> Path:
    """Return a folder's weights, whose name is the authors' choice: ``name``, else a known name, else the only file.

    Raises:
        FileNotFoundError: The folder has no weights, or not this file.
        ValueError: It has several, and ``name`` is ``None``.
    """
    if name is not None and (folder / name).is_file():
        return folder / name
    try:
        return find_weights(folder)
    except FileNotFoundError as error:
        suffixes = (".safetensors", *PICKLED)  # kl16: the autoencoder next to Harmon's weights
        files = [path for path in sorted(folder.glob("*")) if path.suffix in suffixes and path.stem != "kl16"]
        if name is not None or not files:
            raise FileNotFoundError(f"{error}, nor {name or 'a single .pth'}") from None
        if len(files) > 1:
            names = ", ".join(path.name for path in files)
            raise ValueError(f"{folder} holds {names}: choose one with model.options.weights") from None
        return files[0]


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return all tensors of a file, of an ``.index.json`` with its shards, or of a folder with one of these.

    Raises:
        FileNotFoundError: The file or one of its shards is missing.
        ValueError: A file is truncated, not a weights file, or lacks keys that its index lists.
    """
    if path.is_dir():
        return read_weights(find_weights(path))
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    if path.name.endswith(".index.json"):
        return _read_shards(path)
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} cannot be read ({error}): fetch or write it again") from None
    if path.suffix in PICKLED:
        return _read_pickled(path)
    raise ValueError(f"{path}: weights end in .safetensors, .index.json, {', '.join(PICKLED)}")


def _read_shards(index: Path) -> dict[str, Tensor]:
    try:
        shard_of: dict[str, str] = json.loads(index.read_text())["weight_map"]
    except (json.JSONDecodeError, KeyError) as error:
        raise ValueError(f"{index} is not an index of shards ({error!r}): fetch or write it again") from None
    state: dict[str, Tensor] = {}
    for name in sorted(set(shard_of.values())):
        state |= read_weights(index.parent / name)
    if absent := sorted(shard_of.keys() - state.keys()):
        raise ValueError(f"{index} lists keys that its shards lack: {_listed(absent)}")
    return state


def _read_pickled(path: Path) -> dict[str, Tensor]:
    try:
        # Memory-mapped like safetensors; the format from before torch 1.6 cannot be.
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
    """Return the object in a JSON file of a checkpoint.

    Raises:
        FileNotFoundError: The file is missing.
        ValueError: The file is not JSON, or not an object.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON ({error}): fetch or write it again") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not an object")
    return content


def write_torch_file(state: Mapping[str, Tensor], path: Path) -> None:
    """Write a plain state dict as ``torch.load`` reads it, also with ``weights_only=True``."""
    with atomic_file(path) as temporary:
        torch.save({name: _alone(tensor) for name, tensor in state.items()}, temporary)


def _alone(tensor: Tensor) -> Tensor:
    """Return a tensor on the CPU that is no view of a larger one: safetensors refuses those, torch saves the larger."""
    tensor = tensor.detach().cpu().contiguous()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def write_weights(state: Mapping[str, Tensor], folder: Path, stem: str = "model", sharded: bool = True) -> None:
    """Write ``<stem>.safetensors``, or shards of at most 5 GiB and their index; keys are sorted for equal bytes."""
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name in sorted(state):
        tensor = _alone(state[name])
        if sharded and shards[-1] and size + tensor.nbytes > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    names = [f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    names = names if len(shards) > 1 else [f"{stem}.safetensors"]
    for name, shard in zip(names, shards, strict=True):
        save_file(shard, folder / name, {"format": "pt"})
        (folder / name).chmod(0o644)
    if len(shards) > 1:
        shard_of = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
        total = sum(tensor.nbytes for shard in shards for tensor in shard.values())
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(shard_of.items()))}
        write_json(folder / f"{stem}.safetensors.index.json", index)


def load_strictly(
    network: nn.Module,
    state: Mapping[str, Tensor],
    source: Path | str,
    may_lack: Iterable[str] = (),
    may_ignore: Iterable[str] = (),
) -> None:
    """Load a state dict into a network; every key must be accounted for.

    Args:
        network: The network; its parameters take the dtype and memory of ``state``.
        state: Tensors under the network's names.
        source: Origin of ``state``, for messages.
        may_lack: Patterns (``fnmatch``) of the network's keys that ``state`` may lack.
        may_ignore: Patterns of keys in ``state`` that the network may lack.

    Raises:
        ValueError: Other keys are missing or unexpected, or shapes differ.
    """
    lackable, ignorable = tuple(may_lack), tuple(may_ignore)
    expected = network.state_dict()
    absent, unexpected = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    wrong = {
        "missing": [key for key in absent if not _any_match(key, lackable)],
        "unexpected": [key for key in unexpected if not _any_match(key, ignorable)],
        "of another size": [
            f"{key} {tuple(state[key].shape)}, expected {tuple(expected[key].shape)}"
            for key in sorted(expected.keys() & state.keys())
            if expected[key].shape != state[key].shape
        ],
    }
    if any(wrong.values()):
        problems = "; ".join(f"{len(keys)} {kind}: {_listed(keys)}" for kind, keys in wrong.items() if keys)
        raise ValueError(f"the weights of {source} do not fit their config: {problems}")
    common = {key: state[key] for key in expected if key in state}
    network.load_state_dict(common, strict=False, assign=True)


def load_stock(model_class: Any, folder: Path, may_ignore: tuple[str, ...] = (), **options: Any) -> Any:
    """Load a class of transformers from its own layout, strictly; ``may_ignore`` as in :func:`load_strictly`.

    Raises:
        ValueError: The weights cannot be read, or do not fit their config.
    """
    transformers_logging.disable_progress_bar()
    try:
        network, report = model_class.from_pretrained(
            folder, output_loading_info=True, local_files_only=True, trust_remote_code=False, **options
        )
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ValueError(f"the weights of {folder} cannot be read: {error}") from None
    keys = {kind: [key for key in map(str, found) if not _any_match(key, may_ignore)] for kind, found in report.items()}
    if wrong := {kind: _listed(sorted(names)) for kind, names in keys.items() if names}:
        raise ValueError(f"the weights of {folder} do not fit their config: {wrong}")
    return network


def _any_match(key: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)


def _listed(keys: list[str]) -> str:
    more = f" and {len(keys) - MAX_LISTED_KEYS} more" if len(keys) > MAX_LISTED_KEYS else ""
    return ", ".join(keys[:MAX_LISTED_KEYS]) + more
