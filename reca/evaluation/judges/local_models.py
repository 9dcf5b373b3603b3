"""Judges that are models in local folders: their paths, identities, and loading with a strict check of the weights."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from reca.evaluation.benchmark import Judge
from reca.runtime.errors import UserError
from reca.runtime.files import HUB_SOURCE
from reca.runtime.hashing import weights_digest

JUDGES = Path("data/judges")
CONVERTED = "converted_from.json"
"""Written by ``tools.convert_mmdet``."""


def judge_folder(root: Path, source: str) -> Path:
    """Return the folder of the judge ``REPOSITORY@REVISION``."""
    return root / JUDGES / source.partition("@")[0].rpartition("/")[2]


def existing_judge_folder(root: Path, source: str) -> Path:
    """Return the folder of a judge that has been fetched.

    Raises:
        UserError: The folder is missing.
    """
    folder = judge_folder(root, source)
    if not folder.is_dir():
        raise UserError(
            f"the judge {source} is missing: {folder} does not exist. `reca compose` and `reca evaluate` fetch it from "
            "the hub when there is a network; or put the repository's files there yourself"
        )
    return folder


def judge_identity(root: Path, *sources: str) -> Judge:
    """Return one identity for models that judge together: their names, and digests of their weights.

    Raises:
        UserError: A model is missing.
    """
    folders = [existing_judge_folder(root, source) for source in sources]
    names = "+".join(folder.name for folder in folders)
    return Judge(name=names, version="+".join(weights_digest(folder)[:16] for folder in folders))


def weights_origin(folder: Path) -> str:
    """Return the repository or mmdet file that a folder's weights came from; empty if unknown."""
    for name, key in ((CONVERTED, "official"), (HUB_SOURCE, "repository")):
        if (folder / name).is_file():
            try:
                return str(json.loads((folder / name).read_text())[key] or "")
            except (ValueError, KeyError):
                return ""
    return ""


@contextmanager
def explain_load_errors(folder: Path, kind: str) -> Iterator[None]:
    """Raise transformers' loading errors as a ``ValueError`` that names the folder and the kind of model (``CLIP``).

    Raises:
        FileNotFoundError: ``config.json`` is missing.
        ValueError: transformers cannot load the folder.
    """
    from safetensors import SafetensorError

    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder / 'config.json'} is missing: there is no {kind}")
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise ValueError(f"transformers cannot load {folder} as {kind}: {error}") from None


def load_complete(model_class: Any, folder: Path, kind: str) -> Any:
    """Load a model of transformers in float32 on the CPU, with all its weights.

    Raises:
        FileNotFoundError: ``config.json`` is missing.
        ValueError: The folder holds another model, or lacks weights.
    """
    import torch

    with explain_load_errors(folder, kind):
        network, report = model_class.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, dtype=torch.float32, output_loading_info=True
        )
    if absent := sorted(report["missing_keys"]):
        raise ValueError(f"{folder} lacks {len(absent)} weights of its {kind}, such as {absent[0]}")
    return network
