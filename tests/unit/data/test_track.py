"""Tracking of images with real git and DVC in a temporary project."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from reca.cli import _track_prompts
from reca.config import ROOT, CollagesData, Config, FolderData, HubData, WebDatasetData, compose
from reca.data import track as versioning
from reca.data.sources.folder import LEFT_OUT, FolderSource
from reca.data.track import prepare, track
from reca.runtime.errors import UserError
from tests.unit.data.conftest import FolderOf
from tests.unit.data.pictures import png

LIMITS = {"max_pixels": 10**6, "min_side": 1, "held_out_fraction": 0.1, "max_bad_fraction": 0.0}


@pytest.fixture(scope="module")
def empty_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("projects") / "empty"
    folder.mkdir()
    for command in (["git", "init", "--quiet"], [sys.executable, "-m", "dvc", "init", "--quiet"]):
        subprocess.run(command, cwd=folder, check=True, env=os.environ | {"DVC_NO_ANALYTICS": "1"})
    return folder


@pytest.fixture
def project(empty_project: Path, tmp_path: Path) -> Path:
    """Return a new git and DVC project."""
    return Path(shutil.copytree(empty_project, tmp_path / "project"))


def recorded(project: Path, tracked: str) -> dict[str, object]:
    """Return the entry of a tracked folder in its .dvc file."""
    (out,) = yaml.safe_load((project / f"{tracked}.dvc").read_text())["outs"]
    return dict(out)


def test_outside_folder_is_mirrored(project: Path, folder_of: FolderOf, default_config: Config) -> None:
    folder = folder_of({"a.png": png(1), "sub/b.png": png(2), ".DS_Store": b"x"})
    data = FolderData(source="folder", path=str(folder), **LIMITS)
    assert prepare(default_config.model_copy(update={"data": data}), project).data.path == "data/photos"
    first = recorded(project, "data/photos")
    assert first["nfiles"] == 2
    assert (project / "data/photos/sub/b.png").read_bytes() == png(2)

    before = (project / "data/photos/a.png").stat()
    shutil.rmtree(folder / "sub")
    folder_of({"c.png": png(3), "sub": b"now a file"})
    assert track(folder, project) == "data/photos"
    assert {path.name for path in (project / "data/photos").rglob("*")} == {"a.png", "c.png", "sub"}
    assert recorded(project, "data/photos")["md5"] != first["md5"]
    assert (project / "data/photos/a.png").stat() == before  # unchanged files are not copied again

    (folder / "sub").unlink()
    (folder / "c.png").unlink()
    folder_of({"sub/b.png": png(2)})
    track(folder, project)
    assert recorded(project, "data/photos") == first  # the same images, the same version


def test_mirror_avoids_names_in_use(project: Path, folder_of: FolderOf, tmp_path: Path) -> None:
    existing = project / "data" / "photos"
    existing.mkdir(parents=True)
    (existing / "mine.png").write_bytes(png(9))
    folder = folder_of({"a.png": png(1)})
    assert track(folder, project) == "data/photos-2"
    assert [path.name for path in existing.iterdir()] == ["mine.png"]
    # A fresh clone has the copy and DVC's file, but not our record of its origin
    shutil.rmtree(project / ".dvc" / "tmp" / "reca")
    shutil.rmtree(existing)
    existing.symlink_to(folder)
    assert track(folder, project) == "data/photos-2"
    assert existing.is_symlink()


def test_entries_that_dvc_cannot_store_reach_the_quarantine(project: Path, folder_of: FolderOf) -> None:
    folder = folder_of({"a.png": png(1)})
    (folder / "gone.png").symlink_to("nowhere")
    (folder / os.fsdecode(b"caf\xe9.png")).write_bytes(png(2))
    os.mkfifo(folder / "pipe.png")
    (folder / "loop").symlink_to(folder)
    tracked = project / track(folder, project)
    assert sorted(path.name for path in tracked.iterdir()) == [LEFT_OUT, "a.png"]
    entries = {entry.source: getattr(entry, "reason", "good") for entry in FolderSource(tracked, 10**6)}
    assert entries == {
        "a.png": "good",
        "gone.png": "unreadable",
        "caf\\xe9.png": "unreadable",
        "pipe.png": "not-a-file",
    }
    inside = Path(
        shutil.copytree(folder_of({}), project / "inside", symlinks=True, ignore=lambda *_: ["pipe.png", "loop"])
    )
    with pytest.raises(UserError, match=r"DVC cannot store 2 entries of .*inside .*move the folder out of"):
        track(inside, project)


def test_inside_folder_is_tracked_in_place(project: Path) -> None:
    folder = project / "my images" / "set"
    folder.mkdir(parents=True)
    (folder / "a.png").write_bytes(png(1))
    assert track(project / "my images", project) == "my images"
    assert recorded(project, "my images")["nfiles"] == 1
    (folder / "b.png").write_bytes(png(2))
    assert track(folder, project) == "my images/set"  # part of a tracked folder, which is updated
    assert recorded(project, "my images")["nfiles"] == 2
    assert not (project / "my images" / "set.dvc").exists()


def test_folder_tracked_by_git_is_not_added_to_dvc(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "few").mkdir()
    (project / "few" / "a.png").write_bytes(png(1))
    subprocess.run(["git", "add", "few"], cwd=project, check=True)
    assert track(project / "few", project) == "few"
    assert "is tracked by git" in capsys.readouterr().out
    assert not (project / "few.dvc").exists()


def test_tracking_errors_name_the_cause(project: Path, folder_of: FolderOf, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere does not exist; set data\.path"):
        track(tmp_path / "nowhere", project)
    (tmp_path / "empty" / "nested").mkdir(parents=True)
    with pytest.raises(UserError, match="empty has no files"):
        track(tmp_path / "empty", project)
    (project / "a.png").write_bytes(png(1))
    with pytest.raises(UserError, match="contains this project itself"):
        track(project, project)
    bare = tmp_path / "bare"
    bare.mkdir()
    with pytest.raises(UserError, match="bare is not a DVC project: run `dvc init` there"):
        track(folder_of({"a.png": png(1)}), bare)
    shutil.rmtree(project / ".git")
    with pytest.raises(UserError, match=r"DVC cannot track data/photos: .*git"):
        track(folder_of({"a.png": png(1)}), project)


def test_prepare_returns_the_tracked_path(project: Path, folder_of: FolderOf, default_config: Config) -> None:
    folder = folder_of({"set/0000.tar": b"x", "set/0001.tar": b"y"})

    def prepared(data: FolderData | WebDatasetData | HubData) -> FolderData | WebDatasetData | HubData:
        return prepare(default_config.model_copy(update={"data": data}), project).data  # type: ignore[return-value]

    shards = prepared(
        WebDatasetData(source="webdataset", path="recipe", urls=f"{folder}/{{set,}}/{{0000..0001}}.tar", **LIMITS)
    )
    assert (shards.path, shards.urls) == ("data/photos", "data/photos/{set,}/{0000..0001}.tar")  # type: ignore[union-attr]
    table = prepared(HubData(source="hub", path="recipe", dataset=str(folder / "set" / "0000.tar"), **LIMITS))
    assert (table.path, table.dataset) == ("data/0000", "data/0000")  # type: ignore[union-attr]


def test_cutouts_are_tracked_unless_installed_by_the_package_manager(
    project: Path, folder_of: FolderOf, default_config: Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def prepared(path: Path) -> str:
        sizes = {"num_images": 2, "image_size": 96, "held_out_fraction": 0.1, "max_bad_fraction": 0.0}
        data = CollagesData(source="collages", path=str(path), **sizes)
        return prepare(default_config.model_copy(update={"data": data}), project).data.path

    folder = folder_of({"a.png": png(1)})
    assert prepared(folder) == "data/photos"
    monkeypatch.setattr(versioning, "PACKAGE_FOLDER", folder)
    assert prepared(folder) == str(folder)
    with pytest.raises(UserError, match="apt-get install tuxpaint-stamps-default"):
        prepared(tmp_path / "nowhere")


def test_prepare_leaves_remote_and_rendered_data_unchanged(default_config: Config, tmp_path: Path) -> None:
    urls = WebDatasetData(source="webdataset", path="recipe", urls="https://host/{0..9}.tar", **LIMITS)
    hub = HubData(source="hub", path="recipe", dataset="someone/pictures", **LIMITS)
    for data in (default_config.data, urls, hub):
        config = default_config.model_copy(update={"data": data})
        assert prepare(config, tmp_path) == config


def test_benchmark_prompts_are_tracked(project: Path) -> None:
    for name in (".gitignore", ".dvcignore"):
        shutil.copy(ROOT / name, project / name)
    config = compose(["evaluate.benchmarks=[scenes,mme,wise]"])
    folder = project / "data/benchmarks/mme"
    (folder / "unpacked").mkdir(parents=True)
    (folder / "questions.jsonl").write_text("{}\n")
    _track_prompts(config, project)
    assert recorded(project, "data/benchmarks/mme")["nfiles"] == 1
    (folder / "unpacked/1.png").write_bytes(png(1))  # derived from tracked files, so ignored
    before = recorded(project, "data/benchmarks/mme")
    _track_prompts(config, project)
    assert recorded(project, "data/benchmarks/mme") == before
    status = subprocess.check_output(["git", "status", "--porcelain", "--untracked-files=all"], cwd=project, text=True)
    assert "data/benchmarks/mme.dvc" in status
    assert "questions.jsonl" not in status
