"""Digests depend on contents only."""

import hashlib
import os

import pytest

from reca.runtime.errors import UserError
from reca.runtime.hashing import file_digest, folder_digest, json_digest, weights_digest


def test_file_digest_is_sha256(tmp_path):
    (tmp_path / "a").write_bytes(b"abc" * 100_000)
    assert file_digest(tmp_path / "a") == hashlib.sha256(b"abc" * 100_000).hexdigest()


def make(folder, files):
    for name, data in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def test_folder_digest_depends_on_names_and_contents_only(tmp_path):
    files = [("a", b"1"), ("b/c", b"2")]
    first = make(tmp_path / "first", files)
    again = make(tmp_path / "again", reversed(files))
    os.utime(again / "a", (0, 0))
    assert folder_digest(first) == folder_digest(again)
    for number, other in enumerate(([("a", b"1"), ("b/c", b"3")], [("a", b"1"), ("b/d", b"2")], [("a", b"1")])):
        assert folder_digest(make(tmp_path / f"other{number}", other)) != folder_digest(first)


def test_weights_digest_ignores_other_files(tmp_path):
    folder = make(tmp_path / "model", [("model.safetensors", b"w"), ("result.json", b"{}")])
    before = weights_digest(folder)
    (folder / "result.json").write_text('{"wall_seconds": 2}')
    assert weights_digest(folder) == before
    (folder / "model.safetensors").write_bytes(b"v")
    assert weights_digest(folder) != before


def test_weights_digest_covers_torch_files(tmp_path):
    """Some authors publish nothing else."""
    folder = make(tmp_path / "model", [("harmon.pth", b"w"), ("vae/kl16.ckpt", b"w")])
    before = weights_digest(folder)
    (folder / "harmon.pth").write_bytes(b"v")
    assert weights_digest(folder) != before


def test_digest_of_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(UserError, match="holds no file"):
        folder_digest(tmp_path)
    with pytest.raises(UserError, match="holds no file"):
        weights_digest(tmp_path / "missing")


def test_json_digest_ignores_key_order():
    assert json_digest({"a": 1, "b": [2]}) == json_digest({"b": [2], "a": 1})
    assert json_digest({"a": 1}) != json_digest({"a": 2})
    assert json_digest({"a": 1}, 16) == json_digest({"a": 1})[:16]
