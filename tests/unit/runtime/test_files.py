"""Files are whole or not there: also when the writer dies."""

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


def write_half(target: Path) -> None:
    """Fail in the middle of a file."""
    with atomic_file(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError


def fill_half(target: Path) -> None:
    """Fail in the middle of a folder."""
    with atomic_folder(target) as folder:
        (folder / "half").write_text("half")
        raise RuntimeError


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "file.txt"
    write_text(target, "old")
    with pytest.raises(RuntimeError):
        write_half(target)
    assert target.read_text() == "old"
    assert [path.name for path in target.parent.iterdir()] == ["file.txt"]


def test_json_keeps_order_and_letters(tmp_path: Path) -> None:
    write_json(tmp_path / "value.json", {"b": "é", "a": 1})
    assert (tmp_path / "value.json").read_text() == '{\n  "b": "é",\n  "a": 1\n}\n'


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    for content in ("old", "new"):
        with atomic_folder(target) as folder:
            (folder / content).write_text(content)
    assert [path.name for path in target.iterdir()] == ["new"]
    with pytest.raises(RuntimeError):
        fill_half(target)
    assert [path.name for path in target.iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_what_a_killed_writer_left_is_never_taken_and_swept_by_the_next(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    command = [sys.executable, "-c", KILLED_WHILE_WRITING, str(target)]
    died = subprocess.run(command, check=False, env={**os.environ, "PYTHONPATH": os.getcwd()})
    assert died.returncode == -signal.SIGKILL
    assert not target.exists()
    assert list(tmp_path.iterdir())
    with atomic_folder(target) as folder:
        (folder / "whole").write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
