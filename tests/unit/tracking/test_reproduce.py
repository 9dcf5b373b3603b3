"""Lineage, rollback and reproduction of versions that real git, DVC and MLflow keep."""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from reca.runtime.errors import UserError
from reca.stages.register import register
from reca.tracking.lineage import check_params, check_up_to_date, dvc_md5, read_git, read_lock, recorded_hashes
from reca.tracking.reproduce import lineage_command, reproduce_command, rollback_command

NAME = "reca-janus_tiny"
Project = Any  # the class in conftest.py

TRAIN = """
import json, pathlib, sys, numpy, yaml
from safetensors.numpy import save_file
params = yaml.safe_load(open("params.yaml"))
print("checkpoints are in", params["paths"]["state"])
assert pathlib.Path("conf/data/scenes.yaml").is_file()
out = pathlib.Path("outputs/model"); (out / "parts").mkdir(parents=True)
noise = pathlib.Path("noise.txt").read_text() if pathlib.Path("noise.txt").is_file() else ""
rng = numpy.random.default_rng(params["seed"] + len(noise))
save_file({"weight": rng.standard_normal(8)}, out / "model.safetensors")
(out / "parts-list").write_text("a"); (out / "parts/one").write_text("b")
with open("runs.log", "a") as log: log.write("train\\n")
(out / "result.json").write_text(json.dumps({"params": {"train": params["train"]}}))
"""
REPORT = """
import json, pathlib
from reca.config import Config
from reca.evaluation.promotion import evaluate_rules
from reca.evaluation.statistics import BenchmarkDelta
from reca.runtime.hashing import weights_digest
digest = weights_digest(pathlib.Path("outputs/model"))
value = int(digest[:4], 16) / 65536
delta = {"base": 0.1, "aligned": value, "delta": value - 0.1, "low": 0.01, "high": 1.0}
out = pathlib.Path("outputs/report"); out.mkdir(parents=True)
names = ("scenes", "understanding", "fidelity")
deltas = {name: {"overall": delta, "categories": {"c": delta}} for name in names}
(out / "deltas.json").write_text(json.dumps(deltas))
rules = Config.load(pathlib.Path("params.yaml")).register_.promotion_rules
decision = evaluate_rules(rules, {name: BenchmarkDelta.from_dict(entry) for name, entry in deltas.items()}, "later")
record = decision.to_dict() | {"benchmark_set": "s" * 64, "checkpoint": {"aligned": digest}}
(out / "verdict.json").write_text(json.dumps(record))
"""
DVC_YAML = """
stages:
  train:
    cmd: python train.py
    params: [train, seed]
    deps: ["${data.path}", train.py]
    outs: [outputs/model]
  report:
    cmd: python report.py
    deps: [outputs/model, report.py]
    outs: [outputs/report]
"""


def run(project: Project, *command: str) -> str:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment |= {"PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(command, cwd=project.root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def dvc(project: Project, *arguments: str) -> str:
    return run(project, sys.executable, "-m", "dvc", *arguments)


def commit(project: Project, message: str) -> None:
    run(project, "git", "add", "--all")
    run(project, "git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "--quiet", "--message", message)


@pytest.fixture(scope="module")
def template(make_template: Callable[[], Project]) -> Project:
    """A project under git whose two small stages DVC really ran."""
    project = make_template()
    for name, text in (("train.py", TRAIN), ("report.py", REPORT), ("dvc.yaml", DVC_YAML)):
        (project.root / name).write_text(text)
    (project.root / ".gitignore").write_text("/outputs/\n/mlruns/\n/.reca/\nruns.log\n")
    (project.root / "dvc.lock").unlink()
    run(project, "git", "init", "--quiet")
    dvc(project, "init", "--quiet")
    commit(project, "start")
    dvc(project, "repro")
    return project


@pytest.fixture
def tracked(template: Project, tmp_path: Path) -> Project:
    """A copy of the template."""
    shutil.copytree(template.root, tmp_path / "tracked", symlinks=True)
    return type(template)(tmp_path / "tracked", template.config)


def options(**values: object) -> argparse.Namespace:
    return argparse.Namespace(**values)


def test_hashes_equal_those_of_dvc(tracked: Project) -> None:
    hashes = recorded_hashes(read_lock(tracked.root))
    for path in ("outputs/model", "outputs/report", "conf/data/scenes.yaml"):
        assert dvc_md5(tracked.root / path) == hashes[path], path
    check_up_to_date(tracked.root)
    recorded = read_lock(tracked.root)["train"]["params"]["params.yaml"]
    assert recorded["train"] == tracked.config.to_dict()["train"]  # floats such as 1e-05 included
    check_params(tracked.root)


def test_version_is_reproduced_from_its_commit(
    tracked: Project, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    values = tracked.config.to_dict() | {"paths": {"state": str(tmp_path / "shared")}}  # as isolated runs have it
    tracked.config = type(tracked.config).validated(values)
    (tracked.root / "params.yaml").write_text(tracked.config.to_yaml())
    register(tracked.config, tracked.root)
    (tracked.root / "train.py").write_text(TRAIN.replace('["seed"]', '["seed"] + 1'))  # today's code is another
    commit(tracked, "another recipe")

    code = reproduce_command(options(model=f"{NAME}@champion"), tracked.root)

    output = capfd.readouterr().out
    assert code == 0, output
    assert "equal to the last bit" in output
    assert "Running stage 'train'" in output  # from scratch: not restored from the run cache
    assert "checkpoints are in .reca" in output  # nor from finished checkpoints
    assert run(tracked, "git", "worktree", "list").count("\n") == 1  # the worktree was removed
    assert reproduce_command(options(model=f"{NAME}@champion", from_scratch=False), tracked.root) == 0


def test_uncommitted_code_is_recorded_and_applied(tracked: Project, capfd: pytest.CaptureFixture[str]) -> None:
    (tracked.root / "train.py").write_text(TRAIN.replace('["seed"]', '["seed"] + 7'))
    (tracked.root / "noise.txt").write_text("a new file changes the weights")
    dvc(tracked, "repro")
    register(tracked.config, tracked.root)
    assert run(tracked, "git", "status", "--porcelain", "noise.txt") == "?? noise.txt\n"  # the index is as it was
    run(tracked, "git", "checkout", "--quiet", "--", "train.py")
    (tracked.root / "noise.txt").unlink()

    assert reproduce_command(options(model=f"{NAME}@challenger"), tracked.root) == 0
    assert "2 uncommitted files: noise.txt, train.py" in capfd.readouterr().out


def test_differences_are_printed_with_their_cause(tracked: Project, capfd: pytest.CaptureFixture[str]) -> None:
    (tracked.root / "noise.txt").write_text("n" * 4_000_001)  # changes the weights, and is too large to be recorded
    dvc(tracked, "repro", "--force", "--no-run-cache")
    register(tracked.config, tracked.root)

    code = reproduce_command(options(model=f"{NAME}@challenger"), tracked.root)

    output = capfd.readouterr().out
    assert code == 1
    assert "DIFFERS" in output
    assert "NOT reproduced" in output
    assert "noise.txt" in output  # why


def edit_parameters(project: Project) -> None:
    params = (project.root / "params.yaml").read_text()
    (project.root / "params.yaml").write_text(params.replace("max_steps: 600", "max_steps: 601"))


EDITS = {
    "parameters": (edit_parameters, r"train \(changed deps: params\.yaml\.train modified\)"),
    "code": (lambda p: (p.root / "train.py").write_text(TRAIN + "\n"), r"train \(changed deps: train\.py modified\)"),
    "weights": (
        lambda p: save_file({"weight": np.zeros(8)}, p.root / "outputs/model/model.safetensors"),
        r"train \(changed outs: outputs/model modified\), report \(changed deps: outputs/model modified\)",
    ),
    "one stage": (
        lambda p: (edit_parameters(p), dvc(p, "repro", "--single-item", "train")),
        r"report \(changed deps: outputs/model modified\)",
    ),
}


@pytest.mark.parametrize("edit", EDITS)
def test_stale_outputs_are_not_registered(tracked: Project, edit: str) -> None:
    change, cause = EDITS[edit]
    change(tracked)
    config = type(tracked.config).load(tracked.root / "params.yaml")
    with pytest.raises(UserError, match=f"^not registered.*{cause}.*`reca run`"):
        register(config, tracked.root)
    assert not (tracked.root / "mlruns/artifacts").exists()  # no run was logged


def test_version_without_commit_is_refused(project: Project) -> None:
    register(project.config, project.root)
    with pytest.raises(UserError, match="no git repository"):
        reproduce_command(options(model=f"{NAME}@champion"), project.root)


def test_missing_commit_is_refused(project: Project) -> None:
    run(project, "git", "init", "--quiet")
    commit(project, "start")
    register(project.config, project.root)
    run(project, "git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "--quiet", "--amend", "-m", "other")
    run(project, "git", "reflog", "expire", "--expire=now", "--all")
    run(project, "git", "gc", "--quiet", "--prune=now")
    with pytest.raises(UserError, match="is not in this repository; get it with"):
        reproduce_command(options(model=f"{NAME}@champion"), project.root)


def test_lineage_command_prints_the_origin(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    register(project.config, project.root)
    capsys.readouterr()
    assert lineage_command(options(model=f"{NAME}@champion"), project.root) == 0
    output = capsys.readouterr().out
    hashes = recorded_hashes(read_lock(project.root))
    order = ["version 1", "run ", "train.max_steps = 600", hashes["conf/data/scenes.yaml"], "git commit", "base "]
    assert [output.index(words) for words in order] == sorted(output.index(words) for words in order)
    assert "no git repository" in output

    assert lineage_command(options(model=NAME, json=True), project.root) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["version"] == "1"
    assert record["lineage"]["artifacts"]["outputs/model"] == hashes["outputs/model"]
    assert record["parameters"]["train.max_steps"] == "600"


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("reca-none@champion", "no registered model 'reca-none'; there are: reca-janus_tiny"),
        (f"{NAME}@best", r"no alias 'best'; there are: challenger \(version 1\), champion \(version 1\)"),
        (f"{NAME}/7", "no version 7; there are: 1"),
        (f"{NAME}/seven", "no version seven; there are: 1"),
    ],
)
def test_unknown_version_lists_the_existing_ones(project: Project, reference: str, words: str) -> None:
    register(project.config, project.root)
    with pytest.raises(UserError, match=words):
        lineage_command(options(model=reference), project.root)


def test_lineage_command_before_the_first_run_is_an_error(make_project: Callable[..., Project]) -> None:
    empty = make_project(database=False)
    with pytest.raises(UserError, match="nothing is registered yet"):
        lineage_command(options(model=NAME), empty.root)
    assert not (empty.root / "mlruns/mlflow.db").exists()  # reading creates no file


def test_rollback_command_prints_both_versions(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    register(project.config, project.root)
    project.results(weights=1, skill=0.9)
    register(project.config, project.root)
    assert rollback_command(options(name=NAME), project.root) == 0
    assert "version 1 is champion again; version 2 was rolled back" in capsys.readouterr().out


def test_dirty_files_exclude_generated_ones(tracked: Project) -> None:
    for name in ("params.yaml", "dvc.lock"):
        (tracked.root / name).write_text((tracked.root / name).read_text() + "# changed\n")
    assert read_git(tracked.root).dirty == ()
    (tracked.root / "train.py").write_text(TRAIN + "\n")
    (tracked.root / "nëw file.py").write_text("")
    git = read_git(tracked.root)
    assert git.dirty == ("nëw file.py", "train.py")
    assert git.note == "2 uncommitted files: nëw file.py, train.py"
