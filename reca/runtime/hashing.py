"""SHA-256 digests of files, folders and JSON values."""

import hashlib
import json
from pathlib import Path
from typing import Any

from reca.runtime.errors import UserError

PICKLED = (".pth", ".ckpt", ".pt", ".bin")
"""Endings of torch's own weight files; all others end in ``.safetensors``."""


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_digest(folder: Path, *patterns: str) -> str:
    """Return the SHA-256 over relative paths and bytes of the files below ``folder`` that match a pattern, or of all.

    Raises:
        UserError: No file matches.
    """
    found = (path for pattern in patterns or ("*",) for path in folder.rglob(pattern))
    files = sorted({path for path in found if path.is_file()})
    if not files:
        raise UserError(f"{folder} holds no file {', '.join(patterns)}; has the stage that writes it finished?")
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(folder).as_posix()}\0{file_digest(path)}\n".encode())
    return digest.hexdigest()


def weights_digest(checkpoint: Path) -> str:
    """Return the identity of a model: the digest of a checkpoint folder's weight files alone."""
    return folder_digest(checkpoint, "*.safetensors", *(f"*{ending}" for ending in PICKLED))


def checkpoint_digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of a checkpoint folder's files, by relative path, without its documentation.

    Raises:
        UserError: The folder is missing or empty.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []
    if not files:
        raise UserError(f"the checkpoint {folder} is missing or empty; restore it with `git checkout` or `dvc pull`")
    documentation = ("README.md", "card.json", "result.json")
    return {path.relative_to(folder).as_posix(): file_digest(path) for path in files if path.name not in documentation}


def json_digest(value: Any, length: int = 64) -> str:
    """Return the first hex digits of the SHA-256 of a JSON value; the order of keys does not count."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:length]
