"""The extract cache: frozen embeddings and targets in safetensors shards, read through mmap.

``shard-00000.safetensors`` has one tensor per field with a row per image; ``index.json`` lists the ids of every
shard and its SHA-256. The index is written last, when every shard is on disk: without it there is no cache.

Where the rows of a shard differ in shape (``resize: fit``), the tensor is packed to one dimension, and
``<field>.shapes`` (images, dimensions) has the shape of every row.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from reca.data.packed import pack, unpack
from reca.runtime.errors import UserError
from reca.runtime.files import atomic_file, write_json
from reca.runtime.hashing import file_digest

INDEX = "index.json"
FORMAT = 1
PACKED_FORMAT = 2
"""Format number of a cache with packed rows; a program that only reads the other format would misread it."""
SHAPES = ".shapes"
HINT = "run `reca extract` again"


class EmbeddingsError(UserError):
    """The cache is missing, incomplete or damaged; the message names the file and what to run."""


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
    """Shape of an image's row; ``None``: rows differ."""
    dtype: str
    """Type on disk."""


def to_smallest_int(rows: Sequence[Tensor]) -> list[Tensor]:
    """Convert codes (int64) per image to int16 if all fit, else to int32."""
    largest = max(int(row.max()) for row in rows)
    return [row.to(torch.int16 if largest <= torch.iinfo(torch.int16).max else torch.int32) for row in rows]


def write_shard(path: Path, ids: Sequence[str], fields: Mapping[str, Sequence[Tensor]]) -> Shard:
    """Write one shard atomically: per field one tensor for each id, in the type to store."""
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
    """Write ``index.json``, which makes the folder a cache."""
    described = {name: asdict(field) for name, field in fields.items()}
    version = FORMAT if all(field.shape is not None for field in fields.values()) else PACKED_FORMAT
    index = {"format": version, "fields": described, **facts, "shards": [asdict(shard) for shard in shards]}
    write_json(folder / INDEX, index)


def check_shard(folder: Path, shard: Shard) -> None:
    """Check a shard's size and digest against the index.

    Raises:
        EmbeddingsError: The file is missing, has another size (half-written) or other bytes.
    """
    path = folder / shard.file
    if not path.is_file():
        raise EmbeddingsError(f"{path} is missing, though {INDEX} names it; {HINT}")
    size = path.stat().st_size
    if size != shard.size:
        raise EmbeddingsError(f"{path} has {size} bytes instead of {shard.size}: it is incomplete; {HINT}")
    if file_digest(path) != shard.sha256:
        raise EmbeddingsError(f"{path} is damaged: its SHA-256 is not the one in {INDEX}; {HINT}")


class Embeddings:
    """The cache, open for reading; rows are read from disk on access. Use :meth:`open`."""

    def __init__(
        self, folder: Path, fields: Mapping[str, Field], shards: Sequence[Shard], error: Mapping[str, Any] | None = None
    ) -> None:
        self.folder, self.fields, self.error = folder, dict(fields), dict(error or {})
        self._shards = list(shards)
        self._rows = {name: (n, row) for n, shard in enumerate(self._shards) for row, name in enumerate(shard.ids)}
        self._mapped: dict[tuple[int, str], Tensor | list[Tensor]] = {}

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open a cache after verifying every byte.

        Raises:
            EmbeddingsError: The index is missing or unreadable, or a shard differs from its entry.
        """
        path = folder / INDEX
        if not path.is_file():
            raise EmbeddingsError(f"{path} is missing: the extraction has not finished; run `reca extract`")
        try:
            index = json.loads(path.read_text())
            if index["format"] not in (FORMAT, PACKED_FORMAT):
                readable = f"{FORMAT} and {PACKED_FORMAT}"
                raise EmbeddingsError(f"{path} has format {index['format']}, this program reads {readable}; {HINT}")
            fields = {name: Field(**field) for name, field in index["fields"].items()}
            shards = [Shard(**shard) for shard in index["shards"]]
            cache = cls(folder, fields, shards, index.get("error"))
        except (ValueError, KeyError, TypeError) as error:
            raise EmbeddingsError(f"{path} is not an index of embeddings ({error!r}); {HINT}") from None
        for shard in cache._shards:
            check_shard(folder, shard)
        return cache

    @property
    def ids(self) -> list[str]:
        """All image ids, in the order of the shards."""
        return list(self._rows)

    def rows(self, field: str, ids: Sequence[str]) -> list[Tensor]:
        """Return the rows of some images as float32, or as int64 for codes.

        Raises:
            EmbeddingsError: The field or an image is not in the cache.
        """
        if field not in self.fields:
            raise EmbeddingsError(
                f"{self.folder} has no field {field!r}, only {', '.join(self.fields) or 'none'}; {HINT}"
            )
        unknown = next((name for name in ids if name not in self._rows), None)
        if unknown is not None:
            raise EmbeddingsError(f"image {unknown} of the data set is not in {self.folder}; {HINT}")
        positions = [self._rows[name] for name in ids]
        rows = [self._open(number, field)[row] for number, row in positions]
        return [row.float() if row.is_floating_point() else row.long() for row in rows]

    def _open(self, number: int, field: str) -> Tensor | list[Tensor]:
        """Return the rows of a field in a shard, backed by mmap: they are read on access."""
        if (number, field) not in self._mapped:
            path = self.folder / self._shards[number].file
            try:
                with safe_open(path, framework="pt") as shard:
                    values = shard.get_tensor(field)
                    packed = f"{field}{SHAPES}" in set(shard.keys())
                    shapes = shard.get_tensor(f"{field}{SHAPES}").tolist() if packed else None
                self._mapped[number, field] = unpack(values, shapes) if packed else values
            except SafetensorError as error:
                raise EmbeddingsError(f"{path} is not a safetensors file with {field!r} ({error}); {HINT}") from None
        return self._mapped[number, field]
