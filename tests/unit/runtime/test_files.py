"""Files and folders are complete or absent, even when the writer is killed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from reca.runtime.files import atomic_file, atomic_folder, write_json, write_text

KILLED_WHILE_WRITING = """
import os, signal, sys
from pathlib import Path
from reca.runtime.files import atomic_folder
with atomic_folder(Path(sys.argv[1])) as folder:
    (folder / "half").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
KILLED_BETWEEN_RENAMES = """
import os, signal, sys
from pathlib import Path
from reca.runtime.files import atomic_folder
target, replace = Path(sys.argv[1]), os.replace
def killed_at_last_rename(source, destination):
    if Path(destination) == target:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, destination)
os.replace = killed_at_last_rename
with atomic_folder(target) as folder:
    (folder / "new").write_text("new")
"""


def run_killed(code: str, target: Path) -> None:
    """Run code that kills itself."""
    process = subprocess.run(
        [sys.executable, "-c", code, str(target)], check=False, env={**os.environ, "PYTHONPATH": os.getcwd()}
    )
    assert process.returncode == -signal.SIGKILL


def write_half_file(target: Path) -> None:
    with atomic_file(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError


def write_half_folder(target: Path) -> None:
    with atomic_folder(target) as folder:
        (folder / "half").write_text("half")
        raise RuntimeError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "file.txt"
    assert write_text(target, "old")
    with pytest.raises(RuntimeError):
        write_half_file(target)
    assert target.read_text() == "old"
    assert names(target.parent) == ["file.txt"]


def test_equal_text_is_not_written_again(tmp_path: Path) -> None:
    write_text(tmp_path / "file.txt", "text")
    before = (tmp_path / "file.txt").stat()
    assert not write_text(tmp_path / "file.txt", "text")
    assert (tmp_path / "file.txt").stat().st_ino == before.st_ino
    assert write_text(tmp_path / "file.txt", "other")


def test_json_keeps_key_order_and_unicode(tmp_path: Path) -> None:
    write_json(tmp_path / "value.json", {"b": "é", "a": 1})
    assert (tmp_path / "value.json").read_text() == '{\n  "b": "é",\n  "a": 1\n}\n'


def test_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    for content in ("old", "new"):
        with atomic_folder(target) as folder:
            (folder / content).write_text(content)
    assert names(target) == ["new"]
    with pytest.raises(RuntimeError):
        write_half_folder(target)
    assert names(target) == ["new"]
    assert names(tmp_path) == ["folder"]


def test_leftovers_of_a_killed_writer_are_removed_by_the_next(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    run_killed(KILLED_WHILE_WRITING, target)
    assert not target.exists()
    assert names(tmp_path)
    with atomic_folder(target) as folder:
        (folder / "complete").write_text("complete")
    assert names(tmp_path) == ["folder"]


def test_copy_of_a_writer_killed_between_renames_survives_a_failing_writer(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    with atomic_folder(target) as folder:
        (folder / "old").write_text("old")
    run_killed(KILLED_BETWEEN_RENAMES, target)
    assert not target.exists()
    with pytest.raises(RuntimeError):
        write_half_folder(target)
    assert names(target) == ["new"]
    assert names(tmp_path) == ["folder"]
