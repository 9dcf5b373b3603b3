"""Lineage: records, refusals, and messages about missing files."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest

from reca.runtime.errors import UserError
from reca.stages.register import register
from reca.tracking.lineage import check_params, collect_lineage, read_git, read_lock

Project = Any  # the class in conftest.py


def test_lineage_without_git_and_dvc_is_recorded_with_a_note(make_project: Callable[..., Project]) -> None:
    project = make_project()
    project.results(lock=False)
    lineage = collect_lineage(project.config, project.root)
    assert lineage.git.commit is None
    assert lineage.git.note.startswith("no git repository")
    assert not lineage.dvc
    assert lineage.artifacts["outputs/model"].endswith(".dir")  # computed here
    register(project.config, project.root)
    assert project.registered()["verdict"] == "passed"


def test_hashes_are_the_same_with_and_without_dvc(project: Project) -> None:
    with_dvc = collect_lineage(project.config, project.root)
    (project.root / "dvc.lock").unlink()
    without = collect_lineage(project.config, project.root)
    assert with_dvc.dvc
    assert with_dvc.digest == without.digest


def test_folder_inside_another_repository_has_no_commit(project: Project, git: Callable[..., str]) -> None:
    git(project.root.parent, "init", "--quiet")
    assert read_git(project.root).commit is None


def test_repository_without_commit_has_a_note(project: Project, git: Callable[..., str]) -> None:
    git(project.root, "init", "--quiet")
    assert "no commit yet" in read_git(project.root).note


def test_missing_git_program_has_a_note(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert read_git(project.root).note.startswith("no git repository")


@pytest.mark.parametrize(
    "change",
    [
        {"config_digest": "other"},
        {"base_digest": "other"},
        {"weights_digest": "other"},
        {"evidence_digest": "other"},
        {"artifacts": {"outputs/dataset": "other"}},
    ],
)
def test_digest_depends_on_what_changes_a_result(project: Project, change: dict[str, Any]) -> None:
    lineage = collect_lineage(project.config, project.root)
    assert dataclasses.replace(lineage, **change).digest != lineage.digest


@pytest.mark.parametrize("change", [{"device": "other"}, {"versions": {}}, {"dvc": False}, {"python": "4.0"}])
def test_digest_ignores_device_and_versions(project: Project, change: dict[str, Any]) -> None:
    lineage = collect_lineage(project.config, project.root)
    assert dataclasses.replace(lineage, **change).digest == lineage.digest


def test_digest_ignores_hardware_and_tracking(make_project: Callable[..., Project]) -> None:
    first, other = make_project("one"), make_project("other", hardware={"threads": 7}, tracking={"experiment": "x"})
    for project in (first, other):
        project.results()
    assert collect_lineage(first.config, first.root).digest == collect_lineage(other.config, other.root).digest


# ------------------------------------------------------------------------------------------------ false lineage


def test_parameters_that_were_changed_during_a_run_are_found(project: Project) -> None:
    check_params(project.root)
    project.lock(max_steps=41)  # DVC recorded what stood in params.yaml when the stage ended
    with pytest.raises(UserError, match=r"train\.max_steps: dvc\.lock has 41, but train ran with 600"):
        check_params(project.root)
    with pytest.raises(UserError, match="false lineage"):
        register(project.config, project.root)
    assert not (project.root / "mlruns/artifacts").exists()  # no run was logged


def test_parameters_are_numbers_in_yaml_1_2(project: Project) -> None:
    (project.root / "dvc.lock").write_text(
        "schema: '2.0'\nstages:\n  train:\n    cmd: c\n    params:\n      params.yaml:\n"
        "        train.learning_rate: 7e-04\n        seed: 0\n    outs:\n    - path: outputs/model\n      md5: x\n"
    )
    assert read_lock(project.root)["train"]["params"]["params.yaml"]["train.learning_rate"] == 0.0007
    check_params(project.root)


def test_a_report_about_other_weights_is_refused(project: Project) -> None:
    path = project.root / "outputs/report/verdict.json"
    record = json.loads(path.read_text())
    record["checkpoint"]["aligned"] = "f" * 64
    path.write_text(json.dumps(record))
    project.lock()
    with pytest.raises(UserError, match=r"is about other weights \(ffffffffffff"):
        register(project.config, project.root)


@pytest.mark.parametrize("content", ["stages: [1]", "schema: '2.0'", "a: b: c", "", "stages:\n  x: {outs: [{md5: y}]}"])
def test_a_broken_lock_is_named_with_the_way_out(project: Project, content: str) -> None:
    (project.root / "dvc.lock").write_text(content)
    with pytest.raises(UserError, match=r"dvc\.lock is broken .* restore it \(`git checkout"):
        register(project.config, project.root)


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("outputs/model/model.safetensors", r"outputs/model holds no file"),
        ("outputs/report/deltas.json", r"deltas\.json.*run `reca report`"),
        ("data/bases/janus_tiny/model.safetensors", r"janus_tiny holds no file"),
    ],
)
def test_what_is_missing_is_named(make_project: Callable[..., Project], missing: str, words: str) -> None:
    project = make_project()
    project.results(lock=False)
    (project.root / missing).unlink()
    with pytest.raises(UserError, match=words):
        register(project.config, project.root)


def test_a_missing_base_says_how_to_get_it(make_project: Callable[..., Project]) -> None:
    project = make_project(model={"checkpoint": "data/bases/none"})
    project.results(lock=False)
    (project.root / "data/bases/none/model.safetensors").unlink()
    (project.root / "data/bases/none").rmdir()
    with pytest.raises(UserError, match=r"base model .*none is missing; restore it"):
        register(project.config, project.root)


def test_the_pointer_of_tracked_images_is_recorded_and_makes_no_tree_dirty(
    make_project: Callable[..., Project], git: Callable[..., str]
) -> None:
    project = make_project(data={"path": "data/photos/summer"})
    project.results(lock=False)
    (project.root / ".gitignore").write_text("/outputs/\n/mlruns/\n/data/bases/\n")
    git(project.root, "init", "--quiet")
    git(project.root, "add", "--all")
    git(project.root, "commit", "--quiet", "--message", "start")
    (project.root / "data/photos.dvc").write_text("outs: []\n")  # as `dvc add data/photos` leaves it
    (project.root / "data/.gitignore").write_text("/photos\n")

    lineage = collect_lineage(project.config, project.root)

    assert lineage.data_pointer == "data/photos.dvc"
    assert lineage.git.dirty == ()
    register(project.config, project.root)
    assert list((project.root / "mlruns/artifacts").rglob("photos.dvc"))
