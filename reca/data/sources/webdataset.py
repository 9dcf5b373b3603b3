"""Tar shards in webdataset layout, local or on a web server, read as a stream without unpacking to disk."""

import glob
import io
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from tarfile import InvalidHeaderError, ReadError, TruncatedHeaderError  # type: ignore[attr-defined]
from typing import IO, Self

from reca.config import WebDatasetData
from reca.data.sources.base import IMAGE_SUFFIXES, ImageSource, Item, Rejected, describe, printable
from reca.data.sources.http import HttpStream, is_url, public_url
from reca.runtime.errors import UserError

RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
CHOICE = re.compile(r"\{([^{}]*,[^{}]*)\}")
BUFFER_BYTES = 1 << 20
LARGEST_TEXT_BYTES = 1 << 20
IGNORED_SUFFIXES = frozenset({".cls", ".id", ".index", ".url", ".npy", ".npz", ".pyd", ".pkl"})


class StrictHeader(tarfile.TarInfo):
    """Raises an error for a truncated or damaged header, which tarfile silently treats as the end of the shard."""

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> Self:
        """Read the next header."""
        try:
            return super().fromtarfile(tarfile)
        except (TruncatedHeaderError, InvalidHeaderError) as error:
            raise ReadError(str(error)) from error


class WebDatasetSource(ImageSource):
    """The images of all shards that a pattern matches; texts with an image's key describe it.

    Only the base name of a member's path is used. Members that could lead elsewhere (absolute paths, ``..``, links)
    go to the quarantine.

    Args:
        data: ``urls`` is a local pattern (``shards/*.tar``) or URLs, with ranges and choices in braces.
        root: The project; a local pattern is relative to it.
        largest_file: Members with more bytes are refused unread.
    """

    unit = "shards"
    stop_early = True

    def __init__(self, data: WebDatasetData, root: Path, largest_file: int) -> None:
        self._shards = expand(data.urls, root)
        self._root = root
        self._largest_file = largest_file
        self.total = len(self._shards)

    def __iter__(self) -> Iterator[Item | Rejected]:
        for shard in self._shards:
            yield from self._read_shard(shard)
            self.done += 1

    def _read_shard(self, shard: str) -> Iterator[Item | Rejected]:
        name = public_url(shard) if is_url(shard) else PurePosixPath(shard).name
        try:
            with self._open(shard) as stream, _tar(stream) as tar:
                yield from self._read_members(tar, name)
        except (tarfile.TarError, EOFError) as error:
            yield Rejected(name, "broken-shard", f"{type(error).__name__}: the shard is truncated or not a tar file")
        except OSError as error:
            raise UserError(f"cannot read {name}: {error.strerror or error}; check data.urls") from error

    def _open(self, shard: str) -> IO[bytes]:
        if is_url(shard):
            return io.BufferedReader(HttpStream(shard), BUFFER_BYTES)
        return (self._root / shard).open("rb")

    def _read_members(self, tar: tarfile.TarFile, shard: str) -> Iterator[Item | Rejected]:
        """Yield groups of consecutive members with one key: an image and its description."""
        key, group = "", dict[str, tuple[str, bytes]]()
        try:
            for member in tar:
                source = f"{shard}#{printable(PurePosixPath(member.name).name)}"
                problem = self._problem(member)
                if problem is not None:
                    yield Rejected(source, *problem)
                    continue
                stem, suffix = split_key(member.name)
                if stem != key:
                    yield from _items(group)
                    key, group = stem, {}
                file = tar.extractfile(member)  # None for a folder
                if file is not None and suffix not in IGNORED_SUFFIXES:
                    group[suffix] = (source, file.read())
        except tarfile.TarError:
            yield from _items(group)  # complete, though the shard is not
            raise
        yield from _items(group)

    def _problem(self, member: tarfile.TarInfo) -> tuple[str, str] | None:
        path = PurePosixPath(member.name)
        if path.is_absolute() or ".." in path.parts:
            return "unsafe-path", "an absolute path, or one with .."
        if member.issym() or member.islnk():
            return "link", "a link; only files are read"
        if not member.isfile() and not member.isdir():
            return "not-a-file", "a pipe or a device"
        largest = LARGEST_TEXT_BYTES if path.suffix.lower() in (".txt", ".json") else self._largest_file
        if member.size > largest:
            return "too-large", f"{member.size} bytes"
        return None


def _tar(stream: IO[bytes]) -> tarfile.TarFile:
    return tarfile.open(fileobj=stream, mode="r|*", tarinfo=StrictHeader)


def _items(group: dict[str, tuple[str, bytes]]) -> Iterator[Item]:
    texts = {suffix: group[suffix][1] for suffix in (".txt", ".json") if suffix in group}
    images = [suffix for suffix in group if suffix not in texts]
    described = any(suffix in IMAGE_SUFFIXES for suffix in images)
    for suffix in images if described else group:
        source, data = group[suffix]
        yield Item(source, data, describe(texts.get(".txt"), texts.get(".json")))


def split_key(name: str) -> tuple[str, str]:
    """Split a member's name as webdataset does: key up to the first dot of the base name, then the suffix."""
    folder, _, base = name.rpartition("/")
    stem, dot, suffix = base.partition(".")
    return f"{folder}/{stem}", (dot + suffix).lower()


def expand(pattern: str, root: Path) -> list[str]:
    """Return the shards of a pattern: ``{0000..0009}`` counts, ``{a,b}`` chooses, ``*`` and ``?`` match file names.

    Raises:
        UserError: It matches none, or a shard is missing.
    """
    shards = list(_expand_braces(pattern))
    if is_url(pattern):
        return shards
    paths: list[str] = []
    for shard in shards:
        matches = sorted(glob.glob(shard, root_dir=root)) if glob.has_magic(shard) else [shard]
        files = [match for match in matches if (root / match).is_file()]
        if not files:
            raise UserError(f"data.urls={pattern!r}: there is no file {root / shard}")
        paths += files
    return list(dict.fromkeys(paths))


def _expand_braces(pattern: str) -> Iterator[str]:
    if match := RANGE.search(pattern):
        first, last = match.groups()
        if int(first) > int(last):
            raise UserError(f"data.urls={pattern!r}: the range {match[0]} counts down")
        words = [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    elif match := CHOICE.search(pattern):
        words = match[1].split(",")
    else:
        yield pattern
        return
    for word in words:
        yield from _expand_braces(pattern[: match.start()] + word + pattern[match.end() :])


def from_config(data: WebDatasetData, _seed: int, root: Path, largest_file: int) -> WebDatasetSource:
    """Return the tar shards of the section ``data``."""
    return WebDatasetSource(data, root, largest_file)
