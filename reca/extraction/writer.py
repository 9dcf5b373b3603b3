"""Writing the shards and the index of embeddings, on a thread while later images are encoded."""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import save_file
from torch import Tensor

from reca.data.embeddings import FORMAT, INDEX, PACKED_FORMAT, SHAPES, Field, Shard, pack
from reca.extraction.cache import FinishedShard, Row, metadata_path, shard_path
from reca.runtime.files import atomic_file, write_json
from reca.runtime.hashing import file_digest


class EmbeddingsWriter:
    """Writes one shard at a time on a thread; use it in a ``with`` block.

    An error is raised by the next call of :meth:`write`, or at the end.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._last = folder, Future[None]()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="shards")
        self._last.set_result(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._thread.shutdown()  # finishes the shard that is being written, even after an error
        if kind is None:
            self._last.result()

    def write(self, number: int, ids: Sequence[str], rows: Mapping[str, Row]) -> None:
        """Submit a shard after waiting for the previous one, so that at most two are in memory."""
        self._last.result()
        self._last = self._thread.submit(_write, self._folder, number, ids, rows)


def _write(folder: Path, number: int, ids: Sequence[str], rows: Mapping[str, Row]) -> None:
    """Write one shard, and then its metadata, which marks it as finished."""
    fields: dict[str, Field] = {}
    stored: dict[str, list[Tensor]] = {}
    for name in sorted(rows[ids[0]][0]):
        values = [rows[image][0][name] for image in ids]
        stored[name] = values if values[0].is_floating_point() else to_smallest_int(values)
        shape = list(values[0].shape) if len({value.shape for value in values}) == 1 else None
        fields[name] = Field(shape, str(stored[name][0].dtype).removeprefix("torch."))
    costs = [cost for image in ids if (cost := rows[image][1]) is not None]
    FinishedShard(write_shard(shard_path(folder, number), ids, stored), fields, costs).write(
        metadata_path(folder, number)
    )


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


def to_smallest_int(rows: Sequence[Tensor]) -> list[Tensor]:
    """Convert codes (int64) per image to int16 if all fit, else to int32."""
    largest = max(int(row.max()) for row in rows)
    return [row.to(torch.int16 if largest <= torch.iinfo(torch.int16).max else torch.int32) for row in rows]
