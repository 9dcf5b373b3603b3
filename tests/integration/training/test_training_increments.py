"""Extraction after a change of the data reuses earlier rows and writes the same bytes as one from scratch."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import pytest
import torch

from reca.config import Config, compose
from reca.data.images import ImageReader
from reca.data.manifest import read_manifest
from reca.stages.extract import extract
from reca.stages.ingest import ingest
from tests.unit.data.pictures import png

SIZES = ((24, 24), (48, 24), (24, 36), (60, 20))
"""Width and height of the images, in turn."""


def add(root: Path, seeds: range) -> None:
    """Put images of mixed sizes into the project's folder, one a seed."""
    (root / "photos").mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        (root / f"photos/{seed:03d}.png").write_bytes(png(seed, *SIZES[seed % len(SIZES)]))


def configured(root: Path, preset: str, *overrides: str) -> Config:
    """The project's configuration, its data set ingested."""
    words = (f"model={preset}", "data=folder", "data.path=photos", "model.checkpoint=base", "hardware.threads=1")
    config = compose([*words, "hardware.micro_batch_size=4", *overrides])
    ingest(config, root)
    return config


def base(root: Path, preset: str) -> None:
    """A base with random weights, others each time."""
    import_module(f"tools.tiny_bases.{preset}").build().save_official(root / "base")


def contents(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (root / "outputs/embeddings").iterdir()}


def from_scratch(root: Path, config: Config) -> dict[str, bytes]:
    """Write the embeddings of an extraction from scratch."""
    other = root.with_name(f"{root.name}-from-scratch")
    shutil.rmtree(other, ignore_errors=True)
    shutil.copytree(root, other, ignore=shutil.ignore_patterns(".reca", "embeddings"))
    extract(config, other)
    return contents(other)


@contextmanager
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The ids of the images that are decoded, which only those are that the model sees."""
    decoded: list[str] = []
    original = ImageReader.load

    def load(self: ImageReader, image_id: str):
        decoded.append(image_id)
        return original(self, image_id)

    with monkeypatch.context() as patch:
        patch.setattr(ImageReader, "load", load)
        yield decoded


@pytest.mark.parametrize("preset", ["janus_tiny", "bagel_tiny"])
def test_only_new_images_are_encoded(
    preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "project"
    base(root, preset)
    add(root, range(200))
    extract(configured(root, preset, "extract.images_per_shard=64"), root)
    before = set(read_manifest(root / "outputs/dataset", ["id"])["id"].to_pylist())
    (root / "photos/017.png").unlink()
    add(root, range(200, 202))
    config = configured(root, preset, "extract.images_per_shard=64")
    after = set(read_manifest(root / "outputs/dataset", ["id"])["id"].to_pylist())
    capsys.readouterr()
    with watched(monkeypatch) as decoded:
        extract(config, root)
    assert "199 images are taken from earlier extractions, 2 are new" in capsys.readouterr().out
    assert len(after) == 201
    assert sorted(decoded) == sorted(after - before)
    assert contents(root) == from_scratch(root, config)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project whose twelve images, in shards of four, were extracted."""
    root = tmp_path / "project"
    torch.manual_seed(0)
    base(root, "bagel_tiny")
    add(root, range(12))
    extract(small(root), root)
    return root


def small(root: Path, *overrides: str) -> Config:
    return configured(root, "bagel_tiny", "extract.images_per_shard=4", *overrides)


def new_images(output: str) -> int:
    match = re.search(r"images are taken from earlier extractions, (\d+) are new", output)
    assert match is not None, output
    return int(match[1])


def test_other_shards_of_the_same_images(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = configured(project, "bagel_tiny", "extract.images_per_shard=5")
    with watched(monkeypatch) as decoded:
        extract(config, project)
    assert decoded == []
    assert contents(project) == from_scratch(project, config)


def test_nothing_changed(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DVC removes outputs before it runs a stage; shards are linked again."""
    before = contents(project)
    shutil.rmtree(project / "outputs/embeddings")
    with watched(monkeypatch) as decoded:
        extract(small(project), project)
    assert decoded == []
    assert contents(project) == before


@pytest.mark.parametrize("change", ["base", "code", "switch"])
def test_changed_encoder_settings_extract_everything_again(
    change: str, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if change == "base":
        base(project, "bagel_tiny")
    elif change == "code":
        monkeypatch.setattr("reca.stages.extract.code_digest", lambda stage, family: "edited")
    config = small(project, *(["model.options.resize=crop"] if change == "switch" else []))
    with watched(monkeypatch) as decoded:
        extract(config, project)
    assert "taken from earlier" not in capsys.readouterr().out
    assert len(set(decoded)) == 12
    assert contents(project) == from_scratch(project, config)


def test_damaged_shards_are_not_reused(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (path,) = (project / ".reca/extract").glob("*/shard-00001.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    add(project, range(12, 13))
    config = small(project)
    extract(config, project)
    assert new_images(capsys.readouterr().out) == 1 + 4
    assert contents(project) == from_scratch(project, config)


def test_interrupted_increment_continues(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    add(project, range(12, 20))
    config = small(project)
    original, remaining = ImageReader.load, [4]

    def load(self: ImageReader, image_id: str):
        remaining[0] -= 1
        if not remaining[0]:
            raise KeyboardInterrupt
        return original(self, image_id)

    with monkeypatch.context() as patch:
        patch.setattr(ImageReader, "load", load)
        with pytest.raises(KeyboardInterrupt):
            extract(config, project)
    capsys.readouterr()
    with watched(monkeypatch) as decoded:
        extract(config, project)
    match = re.search(r"(\d+) of 20 images were extracted by an earlier attempt", capsys.readouterr().out)
    assert match is not None
    assert 0 < int(match[1]) < 20
    assert 0 < len(decoded) < 8
    assert contents(project) == from_scratch(project, config)


def test_the_last_two_extractions_are_kept(project: Path) -> None:
    states = [{path.name for path in (project / ".reca/extract").iterdir() if path.is_dir()}]
    for seed in (12, 13):
        add(project, range(seed, seed + 1))
        extract(small(project), project)
        states.append({path.name for path in (project / ".reca/extract").iterdir() if path.is_dir()})
    assert [len(names) for names in states] == [1, 2, 2]
    assert not states[0] & states[2]
    shards = list((project / "outputs/embeddings").glob("*.safetensors"))
    inodes = {path.stat().st_ino for path in (project / ".reca/extract").glob("*/*.safetensors")}
    assert {path.stat().st_ino for path in shards} <= inodes  # the newest costs no disk before DVC copies it
