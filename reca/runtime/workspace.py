"""The folder a run works in: the project itself, locked, or a git worktree of its own.

``params.yaml`` and ``dvc.lock`` are state, so two runs in one folder would overwrite each other's lineage
(docs/decisions.md, "the params race").
"""

import configparser
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from reca.config import ROOT
from reca.runtime.dvc_lock import read_lock
from reca.runtime.errors import UserError

WORKSPACES = "RECA_WORKSPACES"
KEPT_WORKSPACES = 2
"""Number of finished worktrees to keep, so that their outputs can be inspected."""
DVC = (sys.executable, "-m", "dvc")
BENCHMARK_OUTPUTS = (("outputs", "samples"), ("outputs", "scores"))
"""Folders with an entry per benchmark."""
_held: set[Path] = set()


class WorkspaceBusy(UserError):
    """Another run works in this folder."""


def project_root(start: Path | None = None) -> Path:
    """Return the nearest folder with a ``dvc.yaml``, from ``start`` (or the working directory) upwards.

    Raises:
        UserError: There is none, and the folder of this code is not a project either.
    """
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        if (folder / "dvc.yaml").is_file():
            return folder
    if (ROOT / "params.yaml").is_file():
        return ROOT
    raise UserError(f"no project here: neither {here} nor a folder above it has a dvc.yaml; change into the project")


@contextmanager
def project_lock(state: Path, run: str) -> Iterator[None]:
    """Hold the project's lock for a whole run; a nested use in the same process succeeds.

    Raises:
        WorkspaceBusy: Another process holds it; names that process, its start, and the possible actions.
    """
    path = (state / "run.lock").resolve()
    if path in _held:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        raise WorkspaceBusy(_busy_message(path)) from None
    _held.add(path)
    path.write_text(json.dumps({"run": run, "pid": os.getpid(), "since": time.strftime("%F %T")}))
    try:
        yield
    finally:
        path.write_text("")
        _held.discard(path)
        lock.release()


def _busy_message(path: Path) -> str:
    try:
        holder = json.loads(path.read_text())
        user = f"run {holder['run']} (process {holder['pid']}, since {holder['since']})"
        kill = f"end it with `kill {holder['pid']}`, "
    except (ValueError, KeyError, OSError):
        user, kill = "another run", ""
    return (
        f"{path.parent.parent} is used by {user}. Wait for it, {kill}"
        "or run in parallel on the last commit: `reca run --isolated`"
    )


@contextmanager
def run_lease(state: Path, run_id: str) -> Iterator[None]:
    """Hold a run's lease for as long as the block lasts; the kernel releases the lease of a killed process."""
    path = lease_path(state, run_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path, thread_local=False):
        yield
        path.unlink(missing_ok=True)


def lease_expired(state: Path, run_id: str) -> bool:
    """Return whether a run began on this machine and its process has gone without ending it."""
    path = lease_path(state, run_id)
    if not path.exists():  # ended, or of another machine
        return False
    try:
        with FileLock(path, timeout=0):
            return True
    except (Timeout, OSError):
        return False


def remove_lease(state: Path, run_id: str) -> None:
    """Remove the lease of a killed run."""
    lease_path(state, run_id).unlink(missing_ok=True)


def lease_path(state: Path, run_id: str) -> Path:
    """Return the file that a living run holds locked."""
    return state / "runs" / f"{run_id}.alive"


@contextmanager
def isolated_worktree(root: Path, state: Path, run_id: str, log: Callable[[str], None]) -> Iterator[Path]:
    """Make a worktree of the current commit, outside the repository, that shares DVC's cache.

    At the end the run's results are pushed to the default remote from the worktree, because DVC pushes only outputs
    that the folder's ``dvc.lock`` names. Worktrees of earlier runs are removed, except for the last two.

    Yields:
        The worktree.

    Raises:
        UserError: There is no git repository, or git or DVC fail.
    """
    if not (root / ".git").exists():
        raise UserError(f"{root} is not a git repository, and an isolated run needs a commit; run `reca run` in place")
    folder = Path(os.environ.get(WORKSPACES) or root.parent / f"{root.name}-workspaces")
    prune_worktrees(root, state, folder)
    worktree = folder / run_id
    folder.mkdir(parents=True, exist_ok=True)
    has_remote = add_worktree(root, worktree, "HEAD")
    run_tool([*DVC, "checkout", "--allow-missing", "--quiet"], worktree)
    commit = run_tool(["git", "rev-parse", "--short", "HEAD"], worktree).strip()
    log(f"working on commit {commit} in {worktree}; uncommitted changes of {root} are not included")
    yield worktree
    if has_remote:
        try:
            run_tool([*DVC, "push", "--quiet"], worktree)
        except UserError as error:
            log(f"the results are in the local cache only, because `dvc push` failed: {error}")


def add_worktree(root: Path, worktree: Path, commit: str) -> bool:
    """Check a commit out into a new folder that uses the project's DVC cache and remotes.

    Returns:
        Whether the project has a default remote.

    Raises:
        UserError: git or DVC fail.
    """
    run_tool(["git", "worktree", "add", "--quiet", "--detach", str(worktree), commit], root)
    settings = configparser.ConfigParser(interpolation=None)
    settings.read([root / ".dvc/config", root / ".dvc/config.local"])
    for section in settings.values():
        url = section.get("url", "")
        if url and "://" not in url:  # relative to the file; pathlib keeps an absolute path
            section["url"] = str((root / ".dvc" / url).resolve())
    if not settings.has_section("cache"):
        settings["cache"] = {"type": "reflink,hardlink,copy"}
    settings["cache"]["dir"] = run_tool([*DVC, "cache", "dir"], root).strip()
    with (worktree / ".dvc/config.local").open("w") as file:
        settings.write(file)
    return settings.has_option("core", "remote")


def prune_worktrees(root: Path, state: Path, folder: Path) -> None:
    """Remove the worktrees of finished and killed runs, except for the last ones."""
    worktrees = [path for path in folder.glob("*") if (path / ".git").is_file()] if folder.is_dir() else []
    idle = [path for path in worktrees if lease_expired(state, path.name) or not lease_path(state, path.name).exists()]
    for path in sorted(idle, key=lambda path: path.stat().st_mtime, reverse=True)[KEPT_WORKSPACES:]:
        shutil.rmtree(path, ignore_errors=True)
    run_tool(["git", "worktree", "prune"], root)


def remove_unlisted_outputs(root: Path, benchmarks: Collection[str]) -> list[str]:
    """Remove samples and scores of benchmarks that are no longer measured.

    ``report`` depends on these folders as a whole, so outputs of an earlier configuration would change its hash, on
    this machine only. Only outputs in ``dvc.lock`` are removed: DVC's cache restores them when needed.

    Returns:
        Names of the benchmarks whose outputs were removed.
    """
    removed = set()
    for path in (Path(out["path"]) for stage in read_lock(root).values() for out in stage.get("outs", [])):
        name = path.name.split(".")[0]
        if path.parts[:2] not in BENCHMARK_OUTPUTS or name in benchmarks or not (root / path).exists():
            continue
        removed.add(name)
        shutil.rmtree(root / path) if (root / path).is_dir() else (root / path).unlink()
    return sorted(removed)


def run_tool(command: list[str], folder: Path, show_output: bool = False, **variables: str) -> str:
    """Run a git or DVC command with further environment variables; ``python`` in stages is this interpreter.

    Returns:
        Its output, unless it was shown in the terminal.

    Raises:
        UserError: The tool is not installed or fails; contains its error message.
    """
    words = " ".join(command[2:] if command[0] == sys.executable else command)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    environment = {**os.environ, "PATH": path, "DVC_NO_ANALYTICS": "1", "GIT_TERMINAL_PROMPT": "0", **variables}
    output = None if show_output else subprocess.PIPE
    try:
        process = subprocess.run(command, cwd=folder, env=environment, stdout=output, stderr=output, text=True)
    except FileNotFoundError:
        raise UserError(f"`{words}` cannot run: {command[0]} is not installed") from None
    if process.returncode != 0:
        raise UserError(f"`{words}` failed in {folder}: {' '.join((process.stderr or 'see above').split())[:600]}")
    return process.stdout or ""


def prepare_dvc(root: Path) -> str | None:
    """Let DVC work without git.

    Returns:
        A note for the user, if there is one.

    Raises:
        UserError: The folder is not a DVC project.
    """
    if not (root / ".dvc").is_dir():
        raise UserError(f"{root} is not a DVC project: run `dvc init` there (without git: `dvc init --no-scm`)")
    if any((folder / ".git").exists() for folder in (root, *root.parents)):
        return None
    run_tool([*DVC, "config", "--local", "core.no_scm", "true"], root)
    return "no git repository: the run works, but the code that made the model is not recorded"
