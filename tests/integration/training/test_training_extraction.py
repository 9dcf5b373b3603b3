"""Extraction that is killed goes on where it was, and never hands out half a shard."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from reca.data.manifest import read_manifest
from reca.runtime.errors import UserError
from reca.stages.extract import extract
from reca.stages.ingest import ingest
from reca.stages.train import train
from tests.fan_outs import one_worker_per_item


def contents(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (root / "outputs/embeddings").iterdir()}


def state(root: Path) -> Path:
    return next(path for path in (root / ".reca/extract").iterdir() if path.is_dir())


def test_killed_extraction_continues(project, template: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (project.root / "outputs/embeddings").iterdir():
        path.unlink()
    (project.root / "outputs/embeddings").rmdir()
    shards = ("shard-00000.json", "shard-00001.json")
    project.kill_when(
        "extract", lambda: all(list((project.root / ".reca/extract").glob(f"*/{name}")) for name in shards)
    )
    folder = state(project.root)
    assert not (project.root / "outputs/embeddings").exists()
    half = folder / "shard-00001.safetensors"
    half.write_bytes(half.read_bytes()[:100])  # and the disk lost the end of the second one
    written = (folder / "shard-00000.safetensors").stat().st_mtime_ns
    extract(project.config, project.root)
    output = capsys.readouterr().out
    images = len(read_manifest(template / "outputs/dataset"))
    # Whether the third shard was finished before the kill is a matter of luck; the second one we have damaged.
    extracted = re.search(rf"(\d+) of {images} images were extracted by an earlier attempt", output)
    assert extracted is not None, output
    assert int(extracted[1]) in (16, images - 16)
    assert contents(project.root) == contents(template)
    published = project.root / "outputs/embeddings/shard-00000.safetensors"
    assert published.stat().st_mtime_ns == written  # the very file that was finished before the kill
    assert published.samefile(folder / "shard-00000.safetensors")  # kept for the next one at no cost
    assert not (folder / "reusable").exists()


def test_prefetching_does_not_change_embeddings(project, template: Path) -> None:
    for folder in ("outputs/embeddings", ".reca"):
        shutil.rmtree(project.root / folder, ignore_errors=True)
    extract(project.configure("hardware.prefetch=2"), project.root)
    assert contents(project.root) == contents(template)


def test_embeddings_are_byte_equal_for_any_number_of_workers(
    project, template: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("outputs/embeddings", ".reca"):
        shutil.rmtree(project.root / folder, ignore_errors=True)
    monkeypatch.setattr("reca.stages.extract.fan_out", one_worker_per_item)
    extract(project.config, project.root)
    assert contents(project.root) == contents(template)
    assert not list((project.root / ".reca/extract").glob("*/reusable"))


def test_reused_rows_are_byte_equal_for_any_number_of_workers(
    project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extract(project.config, project.root)
    config = project.configure("data.num_images=52", "extract.images_per_shard=10")
    ingest(config, project.root)
    shutil.copytree(project.root, tmp_path / "scratch", ignore=shutil.ignore_patterns(".reca"))
    extract(config, tmp_path / "scratch")
    monkeypatch.setattr("reca.stages.extract.fan_out", one_worker_per_item)
    extract(config, project.root)
    for path in (tmp_path / "scratch/outputs/embeddings").iterdir():
        assert (project.root / "outputs/embeddings" / path.name).read_bytes() == path.read_bytes()


def test_other_base_shares_nothing(project) -> None:
    """Finished shards are named by what decides their content (how) and by which images they hold (what)."""
    from reca.stages import extract as stage

    def names(*overrides: str) -> list[str]:
        return stage._fingerprint(project.configure(*overrides), project.root, project.root / "base").split("-")

    how, what = names()
    assert names("model.name=x") == [how, what]
    digests = names("extract.dtype=float32")
    assert digests[0] != how
    assert digests[1] == what
    digests = names("extract.images_per_shard=8")
    assert digests[0] == how
    assert digests[1] != what
    weights = project.root / "base/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    assert names()[0] != how


@pytest.fixture
def small_disk(tmp_path: Path):
    """A file system of 192 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=192k", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip(
            "mounting a tmpfs is not permitted here; tests/unit/training/test_checkpoint.py limits files instead"
        )
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.parametrize("stage", [extract, train])
def test_full_disk(project, small_disk: Path, stage) -> None:
    config = project.configure(f"paths.state={small_disk}", "train.max_steps=1", "train.warmup_steps=0",
                               "extract.images_per_shard=64", "extract.dtype=float32")  # fmt: skip
    with pytest.raises(UserError, match=r"cannot write .*small.*No space left.*paths\.state"):
        stage(config, project.root)


def test_cacheable_target_with_random_draws_is_refused(project, monkeypatch: pytest.MonkeyPatch) -> None:
    from reca.models.base import Target
    from reca.models.janus.model import Janus

    def noisy(self, images, rng) -> Target:
        return Target(rng.normal("posterior", (4,)))

    monkeypatch.setattr(Janus, "encode_target", noisy)
    with pytest.raises(TypeError, match="Janus declares its target cacheable, but encode_target draws"):
        extract(project.config, project.root)


def test_index_names_what_was_measured(template: Path) -> None:
    index = json.loads((template / "outputs/embeddings/index.json").read_text())
    assert set(index["error"]["semantic"]) == {"max", "relative_rms"}
    sizes = [len(shard["ids"]) for shard in index["shards"]]
    assert sum(sizes) == len(read_manifest(template / "outputs/dataset"))
    assert max(sizes) == 16
