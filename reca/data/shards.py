"""Tar shards in webdataset layout whose bytes depend on their content alone: no times, no owners, members as given."""

import io
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

IMAGES_PER_SHARD = 2048
BYTES_PER_SHARD = 256 * 2**20
"""A shard is closed by whichever limit it reaches first."""
HEADER_BYTES = tarfile.BLOCKSIZE


@dataclass(frozen=True, slots=True)
class Member:
    """Where the bytes of a file lie, so that they can be read without looking through the tar."""

    shard: str
    file: str
    offset: int
    length: int


class ShardWriter:
    """Writes ``shard-00000.tar``, ``shard-00001.tar``, … into a folder; use it in a ``with`` block."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tar: tarfile.TarFile | None = None
        self._images = 0
        self.shards = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def add(self, key: str, suffix: str, data: bytes, ground_truth: dict[str, Any] | None) -> Member:
        """Append ``<key>.<suffix>``, and ``<key>.json`` where there is a ground truth; says where the image lies."""
        if self._tar is None or self._images >= IMAGES_PER_SHARD or self._tar.offset >= BYTES_PER_SHARD:
            self._close()
            name = self._folder / f"shard-{self.shards:05d}.tar"
            self._tar = tarfile.open(name, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115 - closed by _close
            self.shards += 1
        file = f"{key}.{suffix}"
        member = Member(f"shard-{self.shards - 1:05d}.tar", file, self._tar.offset + HEADER_BYTES, len(data))
        _append(self._tar, file, data)
        if ground_truth is not None:
            text = json.dumps(ground_truth, ensure_ascii=False, sort_keys=True)
            _append(self._tar, f"{key}.json", text.encode())
        self._images += 1
        return member

    def _close(self) -> None:
        if self._tar is not None:
            self._tar.close()
        self._tar, self._images = None, 0


def _append(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    header = tarfile.TarInfo(name)  # mtime, uid and gid are 0, the mode is 0644
    header.size = len(data)
    tar.addfile(header, io.BytesIO(data))
