"""Fixtures for the tests of ``reca.data``."""

from collections.abc import Callable
from pathlib import Path

import pytest

from reca.config import Config, compose

FolderOf = Callable[[dict[str, bytes]], Path]


@pytest.fixture(scope="session")
def default_config() -> Config:
    """Return the default configuration."""
    return compose(["hardware.threads=2"])


@pytest.fixture
def folder_of(tmp_path: Path) -> FolderOf:
    """Return a function that writes files below ``tmp_path/photos``."""

    def write(files: dict[str, bytes]) -> Path:
        folder = tmp_path / "photos"
        folder.mkdir(exist_ok=True)
        for name, data in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return folder

    return write
