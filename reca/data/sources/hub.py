"""A data set of the Hugging Face hub, or a local folder or Parquet file that ``datasets`` reads."""

import errno
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reca.config import HubData
from reca.data.sources.base import Description, ImageSource, Item, Rejected
from reca.runtime.errors import UserError

if TYPE_CHECKING:
    from datasets import IterableDataset

COMMIT = re.compile(r"[0-9a-f]{40}")


class HubSource(ImageSource):
    """A split's rows as a stream: only the rows that are read are downloaded.

    Args:
        data: ``dataset`` is a hub id with a pinned ``revision``, or a path (relative to the project or absolute).
        root: The project.
        largest_file: Images with more bytes are refused.

    Raises:
        UserError: The id has no pinned revision, or the data set, its split or a column is missing.
    """

    unit = "rows"
    stop_early = True

    def __init__(self, data: HubData, root: Path, largest_file: int) -> None:
        self._data = data
        self._largest_file = largest_file
        local = root / data.dataset
        self._folder = (local if local.is_dir() else local.parent).resolve() if local.exists() else None
        self._rows = _open(data, root)
        split = (self._rows.info.splits or {}).get(data.split)
        rows = getattr(split, "num_examples", 0) or 0
        self.total = min(rows, data.num_images) if data.num_images and rows else rows

    def __iter__(self) -> Iterator[Item | Rejected]:
        rows = iter(self._rows)
        while True:
            try:
                row = next(rows)
            except StopIteration:
                return
            except Exception as error:  # the library lets exceptions of its readers and its network stack through
                raise UserError(
                    f"reading {self._data.dataset} stopped at row {self.done}: {_one_line(error)}"
                ) from error
            yield self._item(f"{self._data.split}/{self.done}", row)
            self.done += 1

    def _item(self, source: str, row: dict[str, Any]) -> Item | Rejected:
        try:
            data = self._bytes_of(row[self._data.image_column])
        except OSError as error:
            return Rejected(source, "unreadable", error.strerror or type(error).__name__)
        if data is None:
            return Rejected(source, "empty", f"the column {self._data.image_column!r} has no image")
        if len(data) > self._largest_file:
            return Rejected(source, "too-large", f"{len(data)} bytes")
        caption = row.get(self._data.caption_column) if self._data.caption_column else None
        return Item(source, data, Description(caption if isinstance(caption, str) and caption.strip() else None))

    def _bytes_of(self, value: Any) -> bytes | None:
        """Return the file's bytes from either form in which ``datasets`` stores an undecoded image."""
        if not isinstance(value, dict):
            return value if isinstance(value, bytes) else None
        if value.get("bytes"):
            return bytes(value["bytes"])
        path = value.get("path")
        if not path:
            return None
        # A row may name any file; only files of the data set itself are opened.
        if self._folder is None and "hf://" not in path:
            raise PermissionError(errno.EPERM, "the row names a file outside the data set")
        if self._folder is not None and not Path(path).resolve().is_relative_to(self._folder):
            raise PermissionError(errno.EPERM, "the row names a file outside the data set")
        from datasets.utils.file_utils import xopen

        with xopen(path, "rb") as file:
            return bytes(file.read())


def _open(data: HubData, root: Path) -> "IterableDataset":
    local = (root / data.dataset).exists()
    if not local and not (data.revision and COMMIT.fullmatch(data.revision)):
        raise UserError(
            f"data.dataset={data.dataset!r} is not a local path, and as a hub id it needs data.revision: the full "
            "commit (40 hex digits, on the data set's page under 'Files', 'History'), so that the run can be repeated"
        )
    from datasets import Image, load_dataset

    if not local:
        arguments: dict[str, Any] = {"path": data.dataset, "revision": data.revision}
    elif (root / data.dataset).is_file():
        arguments = {"path": "parquet", "data_files": {data.split: str(root / data.dataset)}}
    else:
        arguments = {"path": str(root / data.dataset)}
    try:
        rows = load_dataset(**arguments, split=data.split, streaming=True)
        columns = rows.column_names or list(next(iter(rows), {}))
    except Exception as error:  # as above
        raise UserError(
            f"cannot open data.dataset={data.dataset!r}, split {data.split!r}: {_one_line(error)}"
        ) from error
    for key in ("image_column", "caption_column"):
        name = getattr(data, key)
        if name is not None and name not in columns:
            raise UserError(f"data.{key}={name!r} is not a column of {data.dataset}; it has: {', '.join(columns)}")
    decoded = isinstance((rows.features or {}).get(data.image_column), Image)
    return rows.cast_column(data.image_column, Image(decode=False)) if decoded else rows


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:500]


def from_config(data: HubData, _seed: int, root: Path, largest_file: int) -> HubSource:
    """Return the hub's data set of the section ``data``."""
    return HubSource(data, root, largest_file)
