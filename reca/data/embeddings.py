"""The extract cache: frozen embeddings and targets in safetensors shards, read through mmap, with an index last.

``shard-00000.safetensors`` holds one tensor per field, a row an image; ``index.json`` names the ids of every
shard and its SHA-256. No index, no cache: it is written when every shard is on disk.
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

from reca.digest import file_digest
from reca.errors import UserError
from reca.files import whole_file, write_json

INDEX = "index.json"
FORMAT = 1
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
    """One tensor of every shard: ``shape`` of an image's row, and the type on disk."""

    shape: list[int]
    dtype: str


def smallest_integers(codes: Tensor) -> Tensor:
    """Codes as int16 if they fit, else as int32: (…) int64 -> (…)."""
    return codes.to(torch.int16 if codes.max() <= torch.iinfo(torch.int16).max else torch.int32)


def write_shard(path: Path, ids: Sequence[str], fields: Mapping[str, Tensor]) -> Shard:
    """Write one shard whole.

    Args:
        path: Where.
        ids: The images, one a row.
        fields: Name to tensor (len(ids), …), in the type to be stored.
    """
    with whole_file(path) as temporary:
        save_file({name: tensor.contiguous().cpu() for name, tensor in fields.items()}, temporary)
    return Shard(path.name, file_digest(path), path.stat().st_size, list(ids))


def write_index(folder: Path, shards: Sequence[Shard], fields: Mapping[str, Field], **facts: Any) -> None:
    """Write ``index.json``: from now on the folder counts as a cache."""
    described = {name: asdict(field) for name, field in fields.items()}
    write_json(
        folder / INDEX, {"format": FORMAT, "fields": described, **facts, "shards": [asdict(shard) for shard in shards]}
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
    """

    def __init__(self, folder: Path, index: Mapping[str, Any]) -> None:
        self.folder = folder
        self.fields = {name: Field(**field) for name, field in index["fields"].items()}
        self.error: dict[str, Any] = index.get("error", {})
        self._shards = [Shard(**shard) for shard in index["shards"]]
        self._places = {name: (n, row) for n, shard in enumerate(self._shards) for row, name in enumerate(shard.ids)}
        self._tensors: dict[tuple[int, str], Tensor] = {}

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
            if index["format"] != FORMAT:
                raise EmbeddingsError(f"{path} has format {index['format']}, this program reads {FORMAT}; {AGAIN}")
            cache = cls(folder, index)
        except (ValueError, KeyError, TypeError) as error:
            raise EmbeddingsError(f"{path} is no index of embeddings ({error!r}); {AGAIN}") from None
        for shard in cache._shards:
            check_shard(folder, shard)
        return cache

    @property
    def ids(self) -> list[str]:
        """All images, in the order of the shards."""
        return list(self._places)

    def rows(self, field: str, ids: Sequence[str]) -> Tensor:
        """The rows of some images, (len(ids), …): float32, or int64 for codes.

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
        stacked = torch.stack([self._tensor(number, field)[row] for number, row in places])
        return stacked.float() if stacked.is_floating_point() else stacked.long()

    def _tensor(self, number: int, field: str) -> Tensor:
        if (number, field) not in self._tensors:
            path = self.folder / self._shards[number].file
            try:
                with safe_open(path, framework="pt") as shard:
                    self._tensors[number, field] = shard.get_tensor(field)  # backed by mmap: nothing is read yet
            except SafetensorError as error:
                raise EmbeddingsError(f"{path} is no safetensors file with {field!r} ({error}); {AGAIN}") from None
        return self._tensors[number, field]
