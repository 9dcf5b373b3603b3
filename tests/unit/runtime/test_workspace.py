"""Workspaces: the project root, its lock, leases of runs."""

import subprocess
import sys

import pytest

from reca.config import ROOT
from reca.runtime import workspace
from reca.runtime.errors import UserError


def holding(code, folder):
    """Start another process inside ``with <code>:``; it ends at the end of the context."""
    program = (
        "import sys, pathlib; from reca.runtime import workspace\n"
        f"with workspace.{code}: print('in', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "in\n"
    return process


def test_project_root_is_the_nearest_folder_with_a_dvc_yaml(tmp_path):
    (tmp_path / "a/b/c").mkdir(parents=True)
    (tmp_path / "a/dvc.yaml").touch()
    assert workspace.project_root(tmp_path / "a/b/c") == tmp_path / "a"
    assert workspace.project_root(tmp_path) == ROOT, "outside of all projects, it is the project of this code"


def test_project_lock_names_its_holder_and_is_released_by_its_death(tmp_path):
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


def test_lease_expires_for_killed_runs_only(tmp_path):
    with holding("run_lease(pathlib.Path('.'), 'run-1')", tmp_path) as other:
        assert not workspace.lease_expired(tmp_path, "run-1")
        other.kill()
    assert workspace.lease_expired(tmp_path, "run-1")
    workspace.remove_lease(tmp_path, "run-1")
    with workspace.run_lease(tmp_path, "run-2"):
        pass
    assert not workspace.lease_expired(tmp_path, "run-1")
    assert not workspace.lease_expired(tmp_path, "run-2")


def test_worktree_needs_a_git_repository(tmp_path):
    worktree = workspace.isolated_worktree(tmp_path, tmp_path / ".reca", "run", print)
    with pytest.raises(UserError, match="not a git repository"), worktree:
        pass


def test_prepare_dvc_says_what_to_do_without_dvc_or_git(tmp_path):
    with pytest.raises(UserError, match="dvc init"):
        workspace.prepare_dvc(tmp_path)
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").touch()
    assert "no git repository" in workspace.prepare_dvc(tmp_path)
    assert "no_scm = true" in (tmp_path / ".dvc/config.local").read_text()


def test_failed_tool_reports_its_own_message(tmp_path):
    with pytest.raises(UserError, match=r"`git frobnicate` failed in .*frobnicate"):
        workspace.run_tool(["git", "frobnicate"], tmp_path)
    with pytest.raises(UserError, match="is not installed"):
        workspace.run_tool(["no-such-tool"], tmp_path)
