"""Decoded images, their temporary store, and the tar shards that ``ingest`` writes them to.

Shards are in webdataset layout, and their bytes depend on their content alone: no times, no owners, a fixed order.
"""

import hashlib
import io
import json
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from reca.data.image_formats import signature
from reca.data.images import decode
from reca.data.sources.base import Description, Item

IMAGES_PER_SHARD = 2048
BYTES_PER_SHARD = 256 * 2**20
"""A shard is full when it reaches either limit."""
HEADER_BYTES = tarfile.BLOCKSIZE
UNCHANGED_SUFFIXES = {"JPEG": "jpg", "PNG": "png"}
"""Files of these formats are stored unchanged; of others, the decoded first frame is stored as PNG."""


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """An image that decodes: its metadata, and the bytes to store."""

    source: str
    sha256: str
    """Digest of the source's bytes; its first 16 hex digits are the image's id."""
    pixels: bytes
    """Digest of the decoded pixels; equal for the same image in two files."""
    width: int
    height: int
    suffix: str
    stored: bytes
    description: Description

    @classmethod
    def from_item(cls, item: Item, max_pixels: int, min_side: int) -> Self:
        """Decode an item.

        Raises:
            BadImage: Its bytes are not an image within the limits.
        """
        image = decode(item.data, max_pixels, min_side)
        suffix, stored = UNCHANGED_SUFFIXES.get(signature(item.data) or ""), item.data
        if suffix is None:
            file = io.BytesIO()
            image.save(file, "PNG", compress_level=3)
            suffix, stored = "png", file.getvalue()
        return cls(
            source=item.source,
            sha256=hashlib.sha256(item.data).hexdigest(),
            pixels=hashlib.blake2b(image.tobytes(), digest_size=16, key=repr(image.size).encode()).digest(),
            width=image.width,
            height=image.height,
            suffix=suffix,
            stored=stored,
            description=item.description,
        )


@dataclass(frozen=True, slots=True)
class _Record:
    image: DecodedImage  # without its bytes
    offset: int
    length: int


class TempImageStore:
    """Distinct images between a source and the shards, sorted by hash, not by order of arrival.

    Memory holds a record per image (a few KiB, mostly its description). The bytes are in an unnamed temporary file,
    which disappears when the process ends, even by a kill.
    """

    def __init__(self, folder: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - open for the lifetime of the store
        self._records: dict[bytes, _Record] = {}
        self.duplicates = 0

    def __len__(self) -> int:
        return len(self._records)

    def add(self, image: DecodedImage) -> None:
        """Store an image; of several with the same pixels, the one with the smallest (hash, source) stays."""
        record = self._records.get(image.pixels)
        if record is not None:
            self.duplicates += 1
            if (record.image.sha256, record.image.source) <= (image.sha256, image.source):
                return
        offset = self._file.seek(0, io.SEEK_END)
        self._file.write(image.stored)
        self._records[image.pixels] = _Record(replace(image, stored=b""), offset, len(image.stored))

    def images(self, limit: int | None = None) -> Iterator[tuple[DecodedImage, bytes]]:
        """Yield the first ``limit`` images (``None``: all) in order of their hash, each with its stored bytes."""
        for record in sorted(self._records.values(), key=lambda record: record.image.sha256)[:limit]:
            self._file.seek(record.offset)
            yield record.image, self._file.read(record.length)


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

    def add(self, key: str, suffix: str, data: bytes, ground_truth: dict[str, Any] | None) -> dict[str, Any]:
        """Append ``<key>.<suffix>``, and ``<key>.json`` if there is a ground truth.

        Returns:
            The image's position: ``shard``, ``file``, and ``offset`` and ``length`` in bytes.
        """
        if self._tar is None or self._images >= IMAGES_PER_SHARD or self._tar.offset >= BYTES_PER_SHARD:
            self._close()
            name = self._folder / f"shard-{self.shards:05d}.tar"
            self._tar = tarfile.open(name, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115 - closed by _close
            self.shards += 1
        file, shard = f"{key}.{suffix}", f"shard-{self.shards - 1:05d}.tar"
        position = {"shard": shard, "file": file, "offset": self._tar.offset + HEADER_BYTES, "length": len(data)}
        _append(self._tar, file, data)
        if ground_truth is not None:
            text = json.dumps(ground_truth, ensure_ascii=False, sort_keys=True)
            _append(self._tar, f"{key}.json", text.encode())
        self._images += 1
        return position

    def _close(self) -> None:
        if self._tar is not None:
            self._tar.close()
        self._tar, self._images = None, 0


def _append(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    header = tarfile.TarInfo(name)  # mtime, uid and gid are 0, the mode is 0644
    header.size = len(data)
    tar.addfile(header, io.BytesIO(data))
