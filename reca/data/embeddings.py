"""The extract cache: frozen embeddings and targets in safetensors shards, read through mmap.

``shard-00000.safetensors`` has one tensor per field with a row per image; ``index.json`` lists the ids of every
shard and its SHA-256. The index is written last, when every shard is on disk: without it there is no cache.

Where the rows of a shard differ in shape (``resize: fit``), the tensor is packed to one dimension, and
``<field>.shapes`` (images, dimensions) has the shape of every row.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from reca.runtime.errors import UserError
from reca.runtime.hashing import file_digest

INDEX = "index.json"
FORMAT = 1
PACKED_FORMAT = 2
"""Format number of a cache with packed rows; a program that only reads the other format would misread it."""
SHAPES = ".shapes"
HINT = "run `reca extract` again"
Shapes = Sequence[tuple[int, ...]]


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


@dataclass(frozen=True)
class PackedTensor:
    """One tensor per image of a batch, of equal or different shapes."""

    values: Tensor
    """(B, …), or (N,) where rows differ in shape; see :func:`pack`."""
    shapes: Shapes | None = None
    """Shape of every row; ``None``: all are equal."""

    @classmethod
    def from_rows(cls, rows: Sequence[Tensor]) -> Self:
        """Pack one tensor per image."""
        return cls(*pack(rows))

    def rows(self) -> list[Tensor]:
        """Return one tensor per image; views of ``values``."""
        return unpack(self.values, self.shapes)


def map_tensors(batch: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Apply a function to every tensor of a batch: a tensor, a list of tensors, or a :class:`PackedTensor`."""
    if isinstance(batch, PackedTensor):
        return replace(batch, values=function(batch.values))
    return [function(tensor) for tensor in batch] if isinstance(batch, list) else function(batch)


def to_device(batch: Any, device: torch.device) -> Any:
    """Copy a batch to a device; from pinned memory the copy is asynchronous."""
    return map_tensors(batch, lambda tensor: tensor.to(device, non_blocking=True))


def pin_memory(batch: Any, device: torch.device) -> Any:
    """Pin a batch's memory where ``device`` is a GPU, so that it can copy asynchronously."""
    return map_tensors(batch, Tensor.pin_memory) if device.type == "cuda" else batch


def pack(rows: Sequence[Tensor]) -> tuple[Tensor, Shapes | None]:
    """Stack rows of equal shape to (B, …) and ``None``; flatten and concatenate others to (N,), with their shapes."""
    shapes = [tuple(row.shape) for row in rows]
    if len(set(shapes)) == 1:
        return torch.stack(list(rows)), None
    return torch.cat([row.flatten() for row in rows]), shapes


def unpack(values: Tensor, shapes: Shapes | None) -> list[Tensor]:
    """Undo :func:`pack`; the results are views of ``values``."""
    if shapes is None:
        return list(values)
    flat = values.split([math.prod(shape) for shape in shapes])
    return [row.view(shape) for row, shape in zip(flat, shapes, strict=True)]
