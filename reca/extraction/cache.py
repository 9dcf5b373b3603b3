"""Shards of extractions under the state folder, so that killed runs resume and later ones reuse rows.

    <state>/extract/<how>-<what>/   how: digest of model, base and code; what: digest of the images and their order
        shard-00000.safetensors     finished; the output folder has a hard link to it, until DVC replaces it by a copy
        shard-00000.json            its metadata, written last
        reusable/                   valid shards of other extractions with the same <how>, during a run

A shard whose SHA-256 differs is treated as absent. The last :data:`KEPT` extractions stay.
"""

import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from reca.data.embeddings import Embeddings, EmbeddingsError, Field, Shard, check_shard
from reca.runtime.errors import UserError
from reca.runtime.files import write_text
from reca.runtime.locks import file_lock

KEPT = 2
"""Extractions whose shards stay, the current one included, of any settings."""
REUSABLE = "reusable"


@dataclass(frozen=True)
class Rounding:
    """Error of storing an image's ``semantic`` in fewer bits."""

    max: float
    """Largest absolute error."""
    squared_error: float
    squared: float


def rounding(exact: Tensor, stored: Tensor) -> Tensor:
    """Return the fields of :class:`Rounding` by image, (B, 3) float64, of exact and stored values (B, N, D)."""
    values = exact.double()
    error = values - stored.double()
    # In two steps, because one sum over a whole image is split among threads if the image is alone in its batch.
    sums = [numbers.square().sum(dim=2).sum(dim=1) for numbers in (error, values)]
    return torch.stack([error.abs().amax(dim=(1, 2)), *sums], dim=1)


def rounding_facts(images: Sequence[Rounding]) -> dict[str, float]:
    """Return the largest error, and the root mean square error relative to that of the values, for ``index.json``."""
    squared = math.fsum(image.squared for image in images)
    error = math.fsum(image.squared_error for image in images)
    largest = max((image.max for image in images), default=0.0)
    return {"max": largest, "relative_rms": math.sqrt(error / squared) if squared else 0.0}


Row = tuple[dict[str, Tensor], Rounding | None]
"""An image's stored values by field, and their rounding error if there is any."""


@dataclass(frozen=True)
class FinishedShard:
    """Metadata of a shard."""

    shard: Shard
    fields: dict[str, Field]
    rounding: list[Rounding]
    """Errors of the images, in the order of the ids; empty if no field is rounded."""

    def write(self, path: Path) -> None:
        """Write the metadata, which marks the shard as finished."""
        errors = [[error.max, error.squared_error, error.squared] for error in self.rounding]
        fields = {name: asdict(field) for name, field in self.fields.items()}
        write_text(path, json.dumps({"shard": asdict(self.shard), "fields": fields, "rounding": errors}))

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the metadata."""
        content = json.loads(path.read_text())
        fields = {name: Field(**field) for name, field in content["fields"].items()}
        return cls(Shard(**content["shard"]), fields, [Rounding(*image) for image in content["rounding"]])

    @classmethod
    def load_valid(cls, path: Path) -> Self | None:
        """Read the metadata; ``None`` if it or its shard is absent or damaged."""
        try:
            finished = cls.read(path)
            check_shard(path.parent, finished.shard)
        except (OSError, ValueError, KeyError, TypeError, EmbeddingsError):
            return None
        return finished


def metadata_path(folder: Path, number: int) -> Path:
    """Return the path of a shard's metadata."""
    return folder / f"shard-{number:05d}.json"


def shard_path(folder: Path, number: int) -> Path:
    """Return the path of a shard."""
    return folder / f"shard-{number:05d}.safetensors"


def link(source: Path, destination: Path) -> bool:
    """Hard-link a file; returns ``False`` if it had to be copied (another disk, no hard links)."""
    try:
        os.link(source, destination)
    except OSError:
        shutil.copyfile(source, destination)
        return False
    return True


def remove_incomplete(folder: Path, shards: Sequence[Sequence[str]]) -> None:
    """Remove partial files of an earlier attempt, and the metadata of damaged shards."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder / REUSABLE, ignore_errors=True)
    for temporary in folder.glob(".*"):
        temporary.unlink()
    for number, ids in enumerate(shards):
        finished = FinishedShard.load_valid(metadata_path(folder, number))
        if finished is None or finished.shard.ids != list(ids):
            metadata_path(folder, number).unlink(missing_ok=True)


def link_reusable(folder: Path, ids: set[str]) -> None:
    """Link the shards of earlier extractions that hold some of ``ids`` into ``reusable/``.

    No other process can remove them then. An image's id is the beginning of its SHA-256, so the same id is the same
    image in every data set.
    """
    (folder / REUSABLE).mkdir()
    how = folder.name.split("-")[0]
    for metadata in sorted(folder.parent.glob(f"{how}-*/shard-*.json")):
        finished = FinishedShard.load_valid(metadata) if metadata.parent != folder else None
        if finished is None or ids.isdisjoint(finished.shard.ids):
            continue
        path = folder / REUSABLE / f"{metadata.parent.name}-{finished.shard.file}"
        try:
            link(metadata.parent / finished.shard.file, path)
        except FileNotFoundError:  # removed by another run that has just ended
            continue
        replace(finished, shard=replace(finished.shard, file=path.name)).write(path.with_suffix(".json"))


class ReusableRows:
    """Rows of images that earlier extractions have encoded."""

    def __init__(self, folder: Path) -> None:
        shards = [FinishedShard.read(metadata) for metadata in sorted((folder / REUSABLE).glob("*.json"))]
        fields = {name: field for finished in shards for name, field in finished.fields.items()}
        self._embeddings = Embeddings(folder / REUSABLE, fields, [finished.shard for finished in shards])
        self._rounding = {
            name: error
            for finished in shards
            for name, error in zip(finished.shard.ids, finished.rounding, strict=False)
        }
        self.ids = set(self._embeddings.ids)

    def row(self, name: str) -> Row:
        """Return an image's stored values."""
        return {field: self._values(field, name) for field in self._embeddings.fields}, self._rounding.get(name)

    def _values(self, field: str, name: str) -> Tensor:
        (values,) = self._embeddings.rows(field, [name])
        # Codes stay int64, because their smallest integer type depends on the whole shard.
        dtype = getattr(torch, self._embeddings.fields[field].dtype)
        return values.to(dtype) if values.is_floating_point() else values


def remove_old(folder: Path) -> None:
    """Keep this extraction and the newest others, :data:`KEPT` in all, and those that are locked by other processes."""
    shutil.rmtree(folder / REUSABLE, ignore_errors=True)
    os.utime(folder)
    earlier = [path for path in folder.parent.iterdir() if path.is_dir() and path != folder]
    for old in sorted(earlier, key=lambda path: path.stat().st_mtime, reverse=True)[KEPT - 1 :]:
        try:
            with file_lock(lock_path(old), f"the extraction {old.name}", wait_seconds=0):
                shutil.rmtree(old)
        except UserError:
            continue


def lock_path(folder: Path) -> Path:
    """Return the path of an extraction's lock."""
    return folder.with_name(f"{folder.name}.lock")


def merged(shards: Sequence[Mapping[str, Field]]) -> dict[str, Field]:
    """Merge the fields of shards: the widest type, and a shape only if all agree."""
    merged_fields: dict[str, Field] = {}
    for fields in shards:
        for name, field in fields.items():
            previous = merged_fields.get(name, field)
            dtype = "int32" if "int32" in (previous.dtype, field.dtype) else field.dtype
            merged_fields[name] = Field(field.shape if field.shape == previous.shape else None, dtype)
    return merged_fields
