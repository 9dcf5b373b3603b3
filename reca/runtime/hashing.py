"""Names for bytes: SHA-256 of files and folders."""

import hashlib
import json
from pathlib import Path
from typing import Any

from reca.runtime.errors import UserError


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_digest(folder: Path, pattern: str = "*") -> str:
    """SHA-256 over names and contents of the files below ``folder`` that match ``pattern``.

    It depends on the files' relative paths and bytes only, not on times, modes or listing order.

    Raises:
        UserError: No file matches, so the digest would be that of nothing.
    """
    files = sorted(path for path in folder.rglob(pattern) if path.is_file()) if folder.is_dir() else []
    if not files:
        raise UserError(f"{folder} holds no file that matches {pattern!r}; has the stage that writes it finished?")
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(folder).as_posix()}\0{file_digest(path)}\n".encode())
    return digest.hexdigest()


def weights_digest(checkpoint: Path) -> str:
    """The identity of a model: digest of the weight files of a checkpoint folder, whatever else lies beside them."""
    return folder_digest(checkpoint, "*.safetensors")


def checkpoint_digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of a checkpoint folder, by relative path; what only people read is left out.

    Raises:
        UserError: The folder is missing or empty.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []
    if not files:
        raise UserError(f"the checkpoint {folder} is missing or empty; restore it with `git checkout` or `dvc pull`")
    not_read = ("README.md", "card.json", "result.json")
    return {path.relative_to(folder).as_posix(): file_digest(path) for path in files if path.name not in not_read}


def json_digest(value: Any, length: int = 64) -> str:
    """Return the first hex digits of the SHA-256 of a JSON value; the order of keys does not count."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:length]
