"""The extract cache: frozen embeddings and targets in safetensors shards, read through mmap, with an index last.

``shard-00000.safetensors`` holds one tensor per field, a row an image; ``index.json`` names the ids of every
shard and its SHA-256. No index, no cache: it is written when every shard is on disk.

Where the rows of a shard differ in shape (images that keep theirs), the tensor holds all their numbers in a row, and
``<field>.shapes`` (images, dimensions) beside it says how they are cut.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from reca.data.packed import pack
from reca.runtime.errors import UserError
from reca.runtime.files import atomic_file, write_json
from reca.runtime.hashing import file_digest

INDEX = "index.json"
FORMAT = 1
PACKED_FORMAT = 2
"""Of a cache in which some rows differ in shape; a program that knows the other one only would misread it."""
SHAPES = ".shapes"
AGAIN = "make it again with `reca extract`"


class EmbeddingsError(UserError):
    """The cache is missing, incomplete or damaged; the message names the file and the way out."""


@dataclass(frozen=True)
class Shard:
    """One file of the cache."""

    file: str
    sha256: str
    size: int
    """Bytes."""
    ids: list[str]


@dataclass(frozen=True)
class Field:
    """One tensor of every shard."""

    shape: list[int] | None
    """Of an image's row; ``None``: they differ."""
    dtype: str
    """On disk."""


@dataclass(frozen=True)
class _Opened:
    """A field of a shard, backed by mmap: nothing is read before a row is asked for."""

    values: Tensor
    shapes: Tensor | None
    starts: Tensor | None

    @classmethod
    def of(cls, values: Tensor, shapes: Tensor | None) -> Self:
        """Find out where each row begins."""
        if shapes is None:
            return cls(values, None, None)
        lengths = shapes.long().prod(dim=1)
        return cls(values, shapes, lengths.cumsum(0) - lengths)

    def row(self, number: int) -> Tensor:
        if self.shapes is None or self.starts is None:
            return self.values[number]
        shape, start = self.shapes[number].tolist(), int(self.starts[number])
        return self.values[start : start + math.prod(shape)].view(shape)


def to_smallest_int(rows: Sequence[Tensor]) -> list[Tensor]:
    """Codes (int64) of each image as int16 if all of them fit, else as int32."""
    largest = max(int(row.max()) for row in rows)
    return [row.to(torch.int16 if largest <= torch.iinfo(torch.int16).max else torch.int32) for row in rows]


def write_shard(path: Path, ids: Sequence[str], fields: Mapping[str, Sequence[Tensor]]) -> Shard:
    """Write one shard whole.

    Args:
        path: Where.
        ids: The images, one a row.
        fields: Name to a tensor per image, in the type to be stored.
    """
    tensors: dict[str, Tensor] = {}
    for name, rows in fields.items():
        values, shapes = pack(rows)
        tensors[name] = values.contiguous().cpu()
        if shapes is not None:
            tensors[f"{name}{SHAPES}"] = torch.tensor(shapes, dtype=torch.int32)
    with atomic_file(path) as temporary:
        save_file(tensors, temporary)
    return Shard(path.name, file_digest(path), path.stat().st_size, list(ids))


def write_index(folder: Path, shards: Sequence[Shard], fields: Mapping[str, Field], **facts: Any) -> None:
    """Write ``index.json``: from now on the folder counts as a cache."""
    described = {name: asdict(field) for name, field in fields.items()}
    number = FORMAT if all(field.shape is not None for field in fields.values()) else PACKED_FORMAT
    write_json(
        folder / INDEX, {"format": number, "fields": described, **facts, "shards": [asdict(shard) for shard in shards]}
    )


def check_shard(folder: Path, shard: Shard) -> None:
    """Compare a shard with what the index says about it.

    Raises:
        EmbeddingsError: The file is missing, has another length (half-written) or other bytes.
    """
    path = folder / shard.file
    if not path.is_file():
        raise EmbeddingsError(f"{path} is missing, though {INDEX} names it; {AGAIN}")
    size = path.stat().st_size
    if size != shard.size:
        raise EmbeddingsError(f"{path} has {size} bytes instead of {shard.size}: it is only partly there; {AGAIN}")
    if file_digest(path) != shard.sha256:
        raise EmbeddingsError(f"{path} is damaged: its SHA-256 is not the one in {INDEX}; {AGAIN}")


class Embeddings:
    """The cache, open for reading: rows are paged in from disk when they are asked for.

    Use :meth:`open`.

    Args:
        folder: Where the shards lie.
        fields: What each shard holds.
        shards: Every shard.
        error: What rounding has cost, by field.
    """

    def __init__(
        self, folder: Path, fields: Mapping[str, Field], shards: Sequence[Shard], error: Mapping[str, Any] | None = None
    ) -> None:
        self.folder, self.fields, self.error = folder, dict(fields), dict(error or {})
        self._shards = list(shards)
        self._places = {name: (n, row) for n, shard in enumerate(self._shards) for row, name in enumerate(shard.ids)}
        self._opened: dict[tuple[int, str], _Opened] = {}

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open a cache, having verified every byte of it.

        Raises:
            EmbeddingsError: The index is missing or unreadable, or a shard is not what the index says.
        """
        path = folder / INDEX
        if not path.is_file():
            raise EmbeddingsError(f"{path} is missing: the extraction has not finished; finish it with `reca extract`")
        try:
            index = json.loads(path.read_text())
            if index["format"] not in (FORMAT, PACKED_FORMAT):
                known = f"{FORMAT} and {PACKED_FORMAT}"
                raise EmbeddingsError(f"{path} has format {index['format']}, this program reads {known}; {AGAIN}")
            fields = {name: Field(**field) for name, field in index["fields"].items()}
            shards = [Shard(**shard) for shard in index["shards"]]
            cache = cls(folder, fields, shards, index.get("error"))
        except (ValueError, KeyError, TypeError) as error:
            raise EmbeddingsError(f"{path} is no index of embeddings ({error!r}); {AGAIN}") from None
        for shard in cache._shards:
            check_shard(folder, shard)
        return cache

    @property
    def ids(self) -> list[str]:
        """All images, in the order of the shards."""
        return list(self._places)

    def rows(self, field: str, ids: Sequence[str]) -> list[Tensor]:
        """The rows of some images: float32, or int64 for codes.

        Raises:
            EmbeddingsError: The field or an image is not in the cache.
        """
        if field not in self.fields:
            raise EmbeddingsError(
                f"{self.folder} has no field {field!r}, only {', '.join(self.fields) or 'none'}; {AGAIN}"
            )
        missing = next((name for name in ids if name not in self._places), None)
        if missing is not None:
            raise EmbeddingsError(f"image {missing} of the data set is not in {self.folder}; {AGAIN}")
        places = [self._places[name] for name in ids]
        found = [self._open(number, field).row(row) for number, row in places]
        return [row.float() if row.is_floating_point() else row.long() for row in found]

    def _open(self, number: int, field: str) -> _Opened:
        if (number, field) not in self._opened:
            path = self.folder / self._shards[number].file
            try:
                with safe_open(path, framework="pt") as shard:
                    ragged = f"{field}{SHAPES}" in set(shard.keys())
                    shapes = shard.get_tensor(f"{field}{SHAPES}") if ragged else None
                    self._opened[number, field] = _Opened.of(shard.get_tensor(field), shapes)
            except SafetensorError as error:
                raise EmbeddingsError(f"{path} is no safetensors file with {field!r} ({error}); {AGAIN}") from None
        return self._opened[number, field]
