"""Folders of images: nested, linked, described, with unreadable entries."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from reca.data.sources.base import Description, Item, Rejected
from reca.data.sources.folder import FolderSource
from reca.runtime.errors import UserError
from tests.unit.data.conftest import FolderOf
from tests.unit.data.pictures import png

NOBODY_UID = 65534


def read(folder: Path, largest_file: int = 10**6) -> dict[str, Item | Rejected]:
    source = FolderSource(folder, largest_file)
    entries = list(source)
    assert source.done == source.total == len(entries)
    return {entry.source: entry for entry in entries}


def reasons(folder: Path) -> dict[str, str]:
    return {name: entry.reason for name, entry in read(folder).items() if isinstance(entry, Rejected)}


@contextmanager
def not_root() -> Iterator[None]:
    """Run as an unprivileged user, because permissions do not apply to root."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(NOBODY_UID)
    try:
        yield
    finally:
        os.seteuid(before)


def test_nested_folders_are_read_in_order(folder_of: FolderOf) -> None:
    files = {"b.png": png(1), "a/z.PNG": png(2), "a/deep/er/x.jpg": png(3), "no suffix": png(4)}
    entries = read(folder_of(files))
    assert list(entries) == sorted(files)
    assert {name: entry.data for name, entry in entries.items() if isinstance(entry, Item)} == files


def test_hidden_files_are_skipped(folder_of: FolderOf) -> None:
    folder = folder_of({"a.png": png(1), ".DS_Store": b"x", "._a.png": b"x", ".git/objects/b.png": png(2)})
    assert list(read(folder)) == ["a.png"]


def test_texts_describe_images_of_the_same_name(folder_of: FolderOf) -> None:
    folder = folder_of(
        {
            "a.png": png(1),
            "a.txt": b" a cat \n",
            "b.png": png(2),
            "b.json": b'{"caption": "a dog", "full_caption": "a brown dog", "metadata": {"tag": "scene"}, "more": 1}',
            "c.png": png(3),
            "c.json": b"{not json",
            "d.png": png(4),
            "d.txt": b"\xff\xfe\xff",
            "lonely.txt": b"a caption without an image",
        }
    )
    entries = read(folder)
    descriptions = {name: entry.description for name, entry in entries.items() if isinstance(entry, Item)}
    assert descriptions == {
        "a.png": Description("a cat"),
        "b.png": Description("a dog", "a brown dog", {"metadata": {"tag": "scene"}, "more": 1}),
        "c.png": Description(),
        "d.png": Description(),
        "lonely.txt": Description(),  # no image of that name: an item that will not decode
    }


def test_links_are_followed_without_cycles(folder_of: FolderOf, tmp_path: Path) -> None:
    folder = folder_of({"a.png": png(1), "sub/b.png": png(2)})
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "c.png").write_bytes(png(3))
    (folder / "album").symlink_to(elsewhere)
    (folder / "sub" / "up").symlink_to(folder)
    (folder / "sub" / "self").symlink_to(folder / "sub")
    (elsewhere / "back").symlink_to(folder)
    assert list(read(folder)) == ["a.png", "album/c.png", "sub/b.png"]


def test_special_files_are_rejected_without_opening(folder_of: FolderOf) -> None:
    folder = folder_of({"a.png": png(1)})
    (folder / "gone.png").symlink_to("nowhere.png")
    (folder / "ring.png").symlink_to("ring.png")
    os.mkfifo(folder / "pipe.png")  # opening it would block
    assert reasons(folder) == {"gone.png": "unreadable", "ring.png": "unreadable", "pipe.png": "not-a-file"}


def test_unreadable_files_and_folders_are_rejected(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("photos")
    for parent in (folder, *folder.parents[:2]):
        parent.chmod(0o755)
    (folder / "a.png").write_bytes(png(1))
    (folder / "secret.png").write_bytes(png(2))
    (folder / "locked").mkdir(mode=0o000)
    (folder / "secret.png").chmod(0o000)
    with not_root():
        reachable = os.access(folder, os.R_OK | os.X_OK, effective_ids=True)
        rejected = reasons(folder) if reachable else {}
    (folder / "locked").chmod(0o755)
    if not reachable:
        pytest.skip("only root may enter the temporary folder")
    assert rejected == {"secret.png": "unreadable", "locked": "unreadable"}


def test_non_utf8_names_are_escaped(folder_of: FolderOf) -> None:
    folder = folder_of({})
    (folder / os.fsdecode(b"caf\xe9.png")).write_bytes(png(1))
    assert list(read(folder)) == ["caf\\xe9.png"]


def test_deleted_and_oversized_files_are_rejected(folder_of: FolderOf) -> None:
    folder = folder_of({"gone.png": png(1)})
    with (folder / "huge.png").open("wb") as file:
        file.truncate(10**12)  # a sparse file of 1 TB, which must not be read
    source = FolderSource(folder, largest_file=10**6)
    (folder / "gone.png").unlink()
    assert {e.source: e.reason for e in source if isinstance(e, Rejected)} == {
        "gone.png": "unreadable",
        "huge.png": "too-large",
    }


def test_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no folder .*/nowhere; set data\.path"):
        FolderSource(tmp_path / "nowhere", 1)
