"""Files that are whole or not there at all: written under a temporary name, flushed to disk, renamed."""

import ctypes
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HUB_SOURCE = "hub_source.json"
"""In a folder that came from the hub: repository, revision asked for, commit received."""


def write_text(path: Path, text: str) -> bool:
    """Replace a file atomically unless it has this text already; return whether it changed."""
    if path.is_file() and path.read_bytes() == text.encode():
        return False
    with atomic_file(path) as temporary:
        temporary.write_text(text)
    return True


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file in one step; keys keep their order."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place when the block ends well, and vanishes when not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        os.chmod(temporary, 0o644)
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """As :func:`atomic_file` for a folder; what stood at ``path`` before is replaced.

    A folder has one writer at a time, so what a killed one left under its temporary names is swept away first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{path.name}.*"):
        if left.is_dir():
            shutil.rmtree(left)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield temporary
        os.chmod(temporary, 0o755)
        sync_all(temporary)
        if path.exists():
            old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.old."))
            os.replace(path, old / path.name)
            os.replace(temporary, path)
            shutil.rmtree(old)
        else:
            os.replace(temporary, path)
        sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sync_all(folder: Path) -> None:
    """Flush everything below a folder: its whole file system at once, since a flush per file costs tens of ms each."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if (syncfs := getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)) is None:  # not Linux
            os.sync()
        elif syncfs(descriptor):
            raise OSError(ctypes.get_errno(), f"cannot flush {folder} to disk")
    finally:
        os.close(descriptor)


def sync(path: Path) -> None:
    """Flush a file or a folder's entries to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
