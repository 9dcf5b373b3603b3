"""Atomic writes: a file or folder is written under a temporary name, flushed to disk and renamed."""

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
"""File in a folder fetched from the hub: repository, requested revision, received commit."""


def write_text(path: Path, text: str) -> bool:
    """Replace a file atomically unless it has this text already; return whether it changed."""
    if path.is_file() and path.read_bytes() == text.encode():
        return False
    with atomic_file(path) as temporary:
        temporary.write_text(text)
    return True


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file atomically; keys keep their order."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path that replaces ``path`` when the block succeeds and is removed when it fails."""
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
    """Yield a temporary folder that replaces ``path`` when the block succeeds and is removed when it fails.

    A folder has one writer at a time, so the leftovers of a killed writer are removed first. A folder cannot replace
    another in one rename: if the writer was killed between the two, its complete copy is moved to ``path`` now.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    complete, old = path.with_name(f".{path.name}.complete"), path.with_name(f".{path.name}.old")
    if complete.exists() and not path.exists():
        os.replace(complete, path)
    for leftover in (complete, old, *path.parent.glob(f".{path.name}.tmp-*")):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.tmp-"))
    try:
        yield temporary
        os.chmod(temporary, 0o755)
        sync_filesystem(temporary)
        os.replace(temporary, complete)
        if path.exists():
            os.replace(path, old)
        os.replace(complete, path)
        sync(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sync_filesystem(folder: Path) -> None:
    """Flush a folder's whole file system to disk, because one flush per file costs tens of ms each."""
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
