"""The data set that ``ingest`` writes: ``manifest.parquet`` with one row per image, and the images in tar shards."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from reca.runtime.errors import UserError

MANIFEST = "manifest.parquet"
Split = Literal["train", "held_out"]
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
        raise UserError(f"{path} cannot be read ({error}); {repair_hint(folder)}") from None


def repair_hint(folder: Path) -> str:
    """Return what to do about a damaged data set."""
    return f"restore it with `dvc checkout {folder.name}`, or remove {folder} and run `reca ingest`"
