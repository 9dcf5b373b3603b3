"""Extractions under the state folder: a killed one goes on from its finished shards, a later one takes rows from them.

    <state>/extract/<how>-<what>/   how: what decides an image's row (model, base, code); what: which images, in order
        shard-00000.safetensors     finished; the output folder has hard links of it, until DVC puts copies there
        shard-00000.json            its note, written last
        known/                      intact shards of other extractions of the same <how>, while this one works

What is not intact (SHA-256) counts as not there. The last :data:`KEPT` extractions stay.
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
"""Extractions whose shards stay, this one included; other recipes and data sets count alike."""
KNOWN = "known"


@dataclass(frozen=True)
class Rounding:
    """What storing an image's ``semantic`` in fewer bits has cost."""

    max: float
    """Largest absolute error."""
    squared_error: float
    squared: float


def rounding(exact: Tensor, stored: Tensor) -> Tensor:
    """The numbers of a :class:`Rounding` for each image, (B, 3) float64: values (B, N, D) against what is stored."""
    values = exact.double()
    error = values - stored.double()
    # In two steps, for a sum over all of an image that is alone in its batch would be split up among the threads.
    sums = [numbers.square().sum(dim=2).sum(dim=1) for numbers in (error, values)]
    return torch.stack([error.abs().amax(dim=(1, 2)), *sums], dim=1)


def rounding_facts(images: Sequence[Rounding]) -> dict[str, float]:
    """For ``index.json``: the largest error, and the root mean square error relative to that of the values."""
    squared = math.fsum(image.squared for image in images)
    error = math.fsum(image.squared_error for image in images)
    largest = max((image.max for image in images), default=0.0)
    return {"max": largest, "relative_rms": math.sqrt(error / squared) if squared else 0.0}


Row = tuple[dict[str, Tensor], Rounding | None]
"""An image's values by field, as they are stored, and what their rounding has cost, where something is rounded."""


@dataclass(frozen=True)
class FinishedShard:
    """A finished shard."""

    shard: Shard
    fields: dict[str, Field]
    rounding: list[Rounding]
    """Of each image, in the order of its ids; empty where nothing is rounded."""

    def write(self, note: Path) -> None:
        """Write the note: from now on the shard counts as finished."""
        costs = [[cost.max, cost.squared_error, cost.squared] for cost in self.rounding]
        fields = {name: asdict(field) for name, field in self.fields.items()}
        write_text(note, json.dumps({"shard": asdict(self.shard), "fields": fields, "rounding": costs}))

    @classmethod
    def read(cls, note: Path) -> Self:
        """Read a note."""
        found = json.loads(note.read_text())
        fields = {name: Field(**field) for name, field in found["fields"].items()}
        return cls(Shard(**found["shard"]), fields, [Rounding(*image) for image in found["rounding"]])

    @classmethod
    def load_valid(cls, note: Path) -> Self | None:
        """What a note says, if the shard beside it is what it says."""
        try:
            done = cls.read(note)
            check_shard(note.parent, done.shard)
        except (OSError, ValueError, KeyError, TypeError, EmbeddingsError):
            return None
        return done


def metadata_path(folder: Path, number: int) -> Path:
    """Where the note of a shard lies."""
    return folder / f"shard-{number:05d}.json"


def shard_path(folder: Path, number: int) -> Path:
    """Where a shard lies."""
    return folder / f"shard-{number:05d}.safetensors"


def link(source: Path, destination: Path) -> bool:
    """Let a file be in two places, or return False: it is copied where that cannot be (another disk, no hard links)."""
    try:
        os.link(source, destination)
    except OSError:
        shutil.copyfile(source, destination)
        return False
    return True


def remove_incomplete(folder: Path, parts: Sequence[Sequence[str]]) -> None:
    """Remove what is not whole of an earlier attempt, and the notes of damaged shards.

    Args:
        folder: The extraction's.
        parts: The ids of each shard.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder / KNOWN, ignore_errors=True)
    for leftover in folder.glob(".*"):
        leftover.unlink()
    for number, ids in enumerate(parts):
        done = FinishedShard.load_valid(metadata_path(folder, number))
        if done is None or done.shard.ids != list(ids):
            metadata_path(folder, number).unlink(missing_ok=True)


def link_reusable(folder: Path, wanted: set[str]) -> None:
    """Link the shards of earlier extractions that hold some of the wanted images into ``known/`` of this one.

    Once they are linked, nobody else can remove them. An image's id is the beginning of its SHA-256, so the same id is
    the same image in every data set.
    """
    (folder / KNOWN).mkdir()
    how = folder.name.split("-")[0]
    for note in sorted(folder.parent.glob(f"{how}-*/shard-*.json")):
        done = FinishedShard.load_valid(note) if note.parent != folder else None
        if done is None or wanted.isdisjoint(done.shard.ids):
            continue
        place = folder / KNOWN / f"{note.parent.name}-{done.shard.file}"
        try:
            link(note.parent / done.shard.file, place)
        except FileNotFoundError:  # removed by a run that ended just now
            continue
        replace(done, shard=replace(done.shard, file=place.name)).write(place.with_suffix(".json"))


class ReusableRows:
    """Rows of images that were extracted before.

    Args:
        folder: The extraction that they were gathered for.
    """

    def __init__(self, folder: Path) -> None:
        found = [FinishedShard.read(note) for note in sorted((folder / KNOWN).glob("*.json"))]
        fields = {name: field for done in found for name, field in done.fields.items()}
        self._rows = Embeddings(folder / KNOWN, fields, [done.shard for done in found])
        self._rounding = {
            name: image for done in found for name, image in zip(done.shard.ids, done.rounding, strict=False)
        }
        self.ids = set(self._rows.ids)

    def row(self, name: str) -> Row:
        """What is stored of an image."""
        return {field: self._stored(field, name) for field in self._rows.fields}, self._rounding.get(name)

    def _stored(self, field: str, name: str) -> Tensor:
        (values,) = self._rows.rows(field, [name])
        # Codes stay int64, for only the whole shard tells in how few bits they fit.
        return values.to(getattr(torch, self._rows.fields[field].dtype)) if values.is_floating_point() else values


def remove_old(folder: Path) -> None:
    """Keep this finished extraction and the newest others, :data:`KEPT` in all; not what another process works on."""
    shutil.rmtree(folder / KNOWN, ignore_errors=True)
    os.utime(folder)
    others = [path for path in folder.parent.iterdir() if path.is_dir() and path != folder]
    for old in sorted(others, key=lambda path: path.stat().st_mtime, reverse=True)[KEPT - 1 :]:
        try:
            with file_lock(lock_path(old), f"the extraction {old.name}", wait_seconds=0):
                shutil.rmtree(old)
        except UserError:
            continue


def lock_path(folder: Path) -> Path:
    """The lock of whoever works on an extraction."""
    return folder.with_name(f"{folder.name}.lock")


def merged(parts: Sequence[Mapping[str, Field]]) -> dict[str, Field]:
    """The fields of a whole cache, by those of its shards: the widest type, and a shape only where all agree."""
    found: dict[str, Field] = {}
    for fields in parts:
        for name, field in fields.items():
            before = found.get(name, field)
            dtype = "int32" if "int32" in (before.dtype, field.dtype) else field.dtype
            found[name] = Field(field.shape if field.shape == before.shape else None, dtype)
    return found
