"""The data set that ``ingest`` writes: ``manifest.parquet`` with one row per image, and the images in tar shards."""

import hashlib
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from reca.data.images import BadImage, decode
from reca.runtime.errors import UserError

MANIFEST = "manifest.parquet"
Split = Literal["train", "held_out"]
OPEN_SHARDS = 8
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("sha256", pa.string()),
        ("shard", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("split", pa.string()),
        ("source", pa.string()),
        ("caption", pa.string()),
        ("full_caption", pa.string()),
        ("ground_truth", pa.string()),
        # Position of the image's bytes in the shard: one seek instead of a scan of the tar.
        ("file", pa.string()),
        ("offset", pa.int64()),
        ("length", pa.int64()),
    ]
)


def assign_split(sha256: str, held_out_fraction: float) -> Split:
    """Return an image's split, a function of its own hash: adding images never changes the split of another one.

    The hash is hashed once more, because ``data.num_images`` takes the images with the smallest hashes.
    """
    return "held_out" if _split_value(sha256) < held_out_fraction else "train"


def ensure_one_held_out(rows: Sequence[dict[str, Any]]) -> None:
    """Hold out the image with the smallest split value if none is held out, so that few images can be measured too."""
    if len(rows) > 1 and all(row["split"] == "train" for row in rows):
        min(rows, key=lambda row: _split_value(row["sha256"]))["split"] = "held_out"


def _split_value(sha256: str) -> float:
    return int.from_bytes(hashlib.sha256(f"split {sha256}".encode()).digest()[:8], "big") / 2**64


def write_manifest(folder: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write ``manifest.parquet`` with the columns of ``SCHEMA``."""
    pq.write_table(pa.Table.from_pylist(list(rows), schema=SCHEMA), folder / MANIFEST, compression="zstd")


def read_manifest(folder: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read the manifest's rows, ordered by id, or only some of its columns.

    Raises:
        UserError: ``folder`` has no data set, or its manifest cannot be read.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(f"{path} is missing: {folder} has no data set; run `reca ingest`")
    try:
        return pq.read_table(path, columns=None if columns is None else list(columns))
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}); {_repair_hint(folder)}") from None


class ImageReader:
    """Reads images of a data set by id, from any number of threads; the shards read last stay open.

    The rows stay an Arrow table: as Python objects those of a million images would take a gigabyte in every process.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        columns = ["id", "split", "shard", "file", "offset", "length", "width", "height"]
        self._table = read_manifest(folder, columns).combine_chunks()
        ids = np.array(self._table["id"].to_pylist(), dtype=np.bytes_)
        self._order = np.argsort(ids)
        self._sorted_ids = ids[self._order]
        self._open: OrderedDict[str, _Shard] = OrderedDict()
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.clear()

    def ids(self, split: Split | None = None) -> list[str]:
        """Return the ids in order: all, or only a split's."""
        table = self._table if split is None else self._table.filter(pc.field("split") == split)
        ids: list[str] = table["id"].to_pylist()
        return ids

    def size(self, image_id: str) -> tuple[int, int]:
        """Return height and width of an image in pixels.

        Raises:
            KeyError: The data set has no such image.
        """
        row = self._row(image_id)
        return row["height"], row["width"]

    def load(self, image_id: str) -> Image.Image:
        """Decode an image to upright RGB.

        Raises:
            KeyError: The data set has no such image.
            UserError: Its shard is missing or damaged; the message names it.
        """
        row = self._row(image_id)
        path = self._folder / row["shard"]
        try:
            return decode(self._shard(row["shard"]).read(row["offset"], row["length"]))
        except FileNotFoundError:
            raise UserError(f"{path} is missing; {_repair_hint(self._folder)}") from None
        except (BadImage, OSError) as error:
            raise UserError(f"{path} is damaged at {row['file']} ({error}); {_repair_hint(self._folder)}") from None

    def _row(self, image_id: str) -> dict[str, Any]:
        key = np.bytes_(image_id.encode())
        position = int(np.searchsorted(self._sorted_ids, key))
        if position == len(self._sorted_ids) or self._sorted_ids[position] != key:
            raise KeyError(image_id)
        row: dict[str, Any] = self._table.slice(int(self._order[position]), 1).to_pylist()[0]
        return row

    def _shard(self, name: str) -> "_Shard":
        with self._lock:
            if name not in self._open:
                self._open[name] = _Shard(self._folder / name)
                if len(self._open) > OPEN_SHARDS:
                    self._open.popitem(last=False)
            self._open.move_to_end(name)
            return self._open[name]


class _Shard:
    """An open file that is read by offset, so that threads share no file position.

    It is closed with its last reference: another thread may still read a shard that was just evicted.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)

    def read(self, offset: int, length: int) -> bytes:
        return os.pread(self._descriptor, length, offset)


def load_images(
    folder: Path, ids: Iterable[str] | None = None, split: Split | None = None
) -> Iterator[tuple[str, Image.Image]]:
    """Yield id and image of a data set: the given ids in that order, a split, or all images.

    Raises:
        UserError: The data set or one of its shards is missing or damaged.
    """
    with ImageReader(folder) as reader:
        for image_id in reader.ids(split) if ids is None else ids:
            yield image_id, reader.load(image_id)


def _repair_hint(folder: Path) -> str:
    return f"restore it with `dvc checkout {folder.name}`, or remove {folder} and run `reca ingest`"
