"""A folder of photographs: nested, linked, partly captioned, and mixed with other files."""

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from reca.config import FolderData
from reca.data.sources.base import (
    IMAGE_SUFFIXES,
    TEXT_SUFFIXES,
    Description,
    ImageSource,
    Item,
    Rejected,
    describe,
    printable,
)
from reca.runtime.errors import UserError

LEFT_OUT = ".left-out.jsonl"
"""In a copy under DVC: the entries of the user's folder that DVC cannot store (reca/data/track.py)."""


class FolderSource(ImageSource):
    """Every file below a folder, in order of its relative path.

    Hidden files are skipped, and so are texts with the name of an image: they describe it. Files with more bytes than
    ``largest_file`` are refused unread.
    """

    unit = "files"

    def __init__(self, folder: Path, largest_file: int) -> None:
        if not folder.is_dir():
            raise UserError(f"there is no folder {folder}; set data.path to the folder of the images")
        self._folder = folder
        self._largest_file = largest_file
        entries = list(list_files(folder))
        self._rejected = [entry for entry in entries if isinstance(entry, Rejected)] + _left_out(folder)
        files = [entry for entry in entries if isinstance(entry, Path)]
        images = {file.with_suffix("") for file in files if file.suffix.lower() in IMAGE_SUFFIXES}
        self._files = [f for f in files if f.suffix.lower() not in TEXT_SUFFIXES or f.with_suffix("") not in images]
        self.total = len(self._files) + len(self._rejected)

    def __iter__(self) -> Iterator[Item | Rejected]:
        for rejected in self._rejected:
            self.done += 1
            yield rejected
        for file in self._files:
            self.done += 1
            yield self._read(file)

    def _read(self, file: Path) -> Item | Rejected:
        source = printable(file.relative_to(self._folder).as_posix())
        try:
            size = file.stat().st_size
            if size > self._largest_file:
                return Rejected(source, "too-large", f"{size} bytes; no image within data.max_pixels is that large")
            return Item(source, file.read_bytes(), _description_of(file))
        except OSError as error:
            return Rejected(source, "unreadable", os.strerror(error.errno or 0))


def _description_of(file: Path) -> Description:
    if file.suffix.lower() not in IMAGE_SUFFIXES:
        return Description()
    paths = [file.with_suffix(suffix) for suffix in (".txt", ".json")]
    return describe(*(path.read_bytes() if path.is_file() else None for path in paths))


def list_files(folder: Path) -> Iterator[Path | Rejected]:
    """Yield all files below ``folder`` but hidden ones, sorted; links are followed, no folder is entered twice.

    Entries that are neither file nor folder, or cannot be reached, come as :class:`Rejected`.
    """
    yield from _list(folder, folder, set())


def _list(folder: Path, top: Path, entered: set[tuple[int, int]]) -> Iterator[Path | Rejected]:
    try:
        identity = folder.stat()
        names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError as error:
        yield Rejected(_relative_name(folder, top), "unreadable", os.strerror(error.errno or 0))
        return
    if (identity.st_dev, identity.st_ino) in entered:
        return
    entered.add((identity.st_dev, identity.st_ino))
    for name in names:
        path = folder / name
        try:
            mode = path.stat().st_mode
        except OSError as error:
            kind = "a broken link" if path.is_symlink() else os.strerror(error.errno or 0)
            yield Rejected(_relative_name(path, top), "unreadable", kind)
            continue
        if stat.S_ISDIR(mode):
            yield from _list(path, top, entered)
        elif stat.S_ISREG(mode):
            yield path
        else:
            yield Rejected(_relative_name(path, top), "not-a-file", "a pipe, a socket or a device")


def _relative_name(path: Path, top: Path) -> str:
    return printable(path.relative_to(top).as_posix())


def _left_out(folder: Path) -> list[Rejected]:
    path = folder / LEFT_OUT
    return [Rejected(**json.loads(line)) for line in path.read_text().splitlines()] if path.is_file() else []


def from_config(data: FolderData, _seed: int, root: Path, largest_file: int) -> FolderSource:
    """Return the folder of the section ``data``."""
    return FolderSource(root / data.path, largest_file)
