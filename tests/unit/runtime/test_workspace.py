"""Who may work where: the project's root, its one lock, signs of life."""

import subprocess
import sys

import pytest

from reca.config import ROOT
from reca.runtime import workspace
from reca.runtime.errors import UserError


def holding(code, folder):
    """Another process inside ``with <code>:``; ends at the context's end."""
    program = (
        "import sys, pathlib; from reca.runtime import workspace\n"
        f"with workspace.{code}: print('in', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "in\n"
    return process


def test_the_root_is_the_nearest_folder_with_a_graph(tmp_path):
    (tmp_path / "a/b/c").mkdir(parents=True)
    (tmp_path / "a/dvc.yaml").touch()
    assert workspace.project_root(tmp_path / "a/b/c") == tmp_path / "a"
    assert workspace.project_root(tmp_path) == ROOT, "outside of all projects it is the one this code lies in"


def test_the_lock_names_its_holder_and_dies_with_it(tmp_path):
    with holding("project_lock(pathlib.Path('.reca'), 'golden otter')", tmp_path) as other:
        busy = rf"golden otter \(process {other.pid}, since .*--isolated"
        with pytest.raises(workspace.WorkspaceBusy, match=busy), workspace.project_lock(tmp_path / ".reca", "me"):
            pass
        other.kill()
    with (
        workspace.project_lock(tmp_path / ".reca", "me"),
        workspace.project_lock(tmp_path / ".reca", "the flow in here"),
    ):
        pass


def test_dead_runs_are_told_from_living_and_finished_ones(tmp_path):
    with holding("run_lease(pathlib.Path('.'), 'run-1')", tmp_path) as other:
        assert not workspace.lease_expired(tmp_path, "run-1")
        other.kill()
    assert workspace.lease_expired(tmp_path, "run-1")
    workspace.remove_lease(tmp_path, "run-1")
    with workspace.run_lease(tmp_path, "run-2"):
        pass
    assert not workspace.lease_expired(tmp_path, "run-1")
    assert not workspace.lease_expired(tmp_path, "run-2")


def test_a_worktree_needs_a_repository(tmp_path):
    place = workspace.isolated_worktree(tmp_path, tmp_path / ".reca", "run", print)
    with pytest.raises(UserError, match="no git repository"), place:
        pass


def test_without_dvc_or_git_the_way_out_is_named(tmp_path):
    with pytest.raises(UserError, match="dvc init"):
        workspace.prepare_dvc(tmp_path)
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").touch()
    assert "no git repository" in workspace.prepare_dvc(tmp_path)
    assert "no_scm = true" in (tmp_path / ".dvc/config.local").read_text()


def test_a_tool_that_fails_speaks_for_itself(tmp_path):
    with pytest.raises(UserError, match=r"`git frobnicate` failed in .*frobnicate"):
        workspace.run_tool(["git", "frobnicate"], tmp_path)
    with pytest.raises(UserError, match="is not installed"):
        workspace.run_tool(["no-such-tool"], tmp_path)
