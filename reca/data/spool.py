"""Images on their way from a source to the shards: bytes in one nameless file, a small record of each in memory."""

import hashlib
import io
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from reca.data.images import decode, signature
from reca.data.sources.base import Description, Item

KEPT_SUFFIXES = {"JPEG": "jpg", "PNG": "png"}
"""Files of these formats are stored as they are; of others, the decoded first frame is stored as PNG."""


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """An image that decodes: what is known of it, and the bytes that are stored."""

    source: str
    sha256: str
    """Of the source's bytes; its first 16 hex digits are the image's id."""
    pixels: bytes
    """A digest of the decoded pixels; the same picture in two files has it in common."""
    width: int
    height: int
    suffix: str
    stored: bytes
    description: Description

    @classmethod
    def from_item(cls, item: Item, max_pixels: int, min_side: int) -> Self:
        """Decode an item.

        Raises:
            BadImage: Its bytes are no image within the limits.
        """
        image = decode(item.data, max_pixels, min_side)
        suffix, stored = KEPT_SUFFIXES.get(signature(item.data) or ""), item.data
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
class _Place:
    picture: DecodedImage  # without its bytes
    offset: int
    length: int


class TempImageStore:
    """Distinct pictures, in the order of their hashes whatever order they came in.

    Memory is bounded by the records (a few KiB each, mostly what is said about the image). The bytes are in a file
    without a name, which vanishes with the process however that ends.
    """

    def __init__(self, folder: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - lives as long as the store
        self._places: dict[bytes, _Place] = {}
        self.duplicates = 0

    def __len__(self) -> int:
        return len(self._places)

    def add(self, picture: DecodedImage) -> None:
        """Keep a picture; of several that look the same, the one with the smallest (hash, source) is kept."""
        known = self._places.get(picture.pixels)
        if known is not None:
            self.duplicates += 1
            if (known.picture.sha256, known.picture.source) <= (picture.sha256, picture.source):
                return
        offset = self._file.seek(0, io.SEEK_END)
        self._file.write(picture.stored)
        self._places[picture.pixels] = _Place(replace(picture, stored=b""), offset, len(picture.stored))

    def images(self, limit: int | None = None) -> Iterator[tuple[DecodedImage, bytes]]:
        """The first ``limit`` pictures (``None``: all) in order of their hash, each with its stored bytes."""
        for place in sorted(self._places.values(), key=lambda place: place.picture.sha256)[:limit]:
            self._file.seek(place.offset)
            yield place.picture, self._file.read(place.length)
