"""Where a run works: in the project itself, under one lock, or in a git worktree of its own.

``params.yaml`` and ``dvc.lock`` are state: two runs in one folder would write each other's lineage
(docs/decisions.md, "the params race").
"""

import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from reca.config import ROOT
from reca.runtime.dvc_lock import read_lock
from reca.runtime.errors import UserError
from reca.runtime.files import write_text

WORKSPACES = "RECA_WORKSPACES"
KEPT_WORKSPACES = 2
"""Finished worktrees that stay, so that their outputs can be looked at; their hashes and pictures are in MLflow."""
DVC = (sys.executable, "-m", "dvc")
REMOTE = re.compile(r"^(\S+)\s+(\S.*?)(\s+\(default\))?$", re.MULTILINE)
"""A line of `dvc remote list`: name, absolute URL, whether it is the default."""
MEASURED = (("outputs", "samples"), ("outputs", "scores"))
"""Folders that hold something of every benchmark."""
_held: set[Path] = set()


class WorkspaceBusy(UserError):
    """Another run works here."""


def project_root(start: Path | None = None) -> Path:
    """The project that ``start`` (or the working directory) lies in: the nearest folder with a ``dvc.yaml``.

    Raises:
        UserError: Neither that folder's parents nor the folder of this code is a project.
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
    """Have the project to oneself for a whole run; a second use within this process is let through.

    Args:
        state: The state folder.
        run: Who it is, for the message that others get.

    Raises:
        WorkspaceBusy: Another process has it; says which one, since when, and what to do.
    """
    path = (state / "run.lock").resolve()
    if path in _held:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise WorkspaceBusy(_who_is_there(path)) from None
        _held.add(path)
        file.truncate(0)
        json.dump({"run": run, "pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}, file)
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)
            _held.discard(path)


def _who_is_there(path: Path) -> str:
    try:
        holder = json.loads(path.read_text())
        who = f"run {holder['run']} (process {holder['pid']}, since {holder['since']})"
        kill = f"end it with `kill {holder['pid']}`, "
    except (ValueError, KeyError, OSError):
        who, kill = "another run", ""
    return (
        f"{path.parent.parent} is used by {who}. Wait for it, {kill}"
        "or work beside it on the last commit: `reca run --isolated`"
    )


@contextmanager
def run_lease(state: Path, run_id: str) -> Iterator[None]:
    """Show, as long as the block lasts, that a run is alive; the kernel takes the sign back from the dead."""
    path = lease_path(state, run_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
        path.unlink(missing_ok=True)


def lease_expired(state: Path, run_id: str) -> bool:
    """Whether a run began here and its process is gone without having ended it."""
    try:
        with lease_path(state, run_id).open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # held, so alive; or never there, so not ours to judge
        return False
    return True


def remove_lease(state: Path, run_id: str) -> None:
    """Forget a dead run."""
    lease_path(state, run_id).unlink(missing_ok=True)


def lease_path(state: Path, run_id: str) -> Path:
    """Return the file that a living run holds locked."""
    return state / "runs" / f"{run_id}.alive"


@contextmanager
def isolated_worktree(root: Path, state: Path, run_id: str, say: Callable[[str], None]) -> Iterator[Path]:
    """A worktree of the current commit, outside the repository, with DVC's cache shared.

    At the end the run's results are pushed to the default remote, from here: DVC pushes only what the ``dvc.lock``
    of the folder names. Worktrees of earlier runs are removed at the next start, but for the last two.

    Args:
        root: The project.
        state: Its state folder.
        run_id: Name of the worktree.
        say: Told what is going on.

    Yields:
        The worktree.

    Raises:
        UserError: No git repository, or git or DVC refuse.
    """
    if not (root / ".git").exists():
        raise UserError(f"{root} is no git repository: a run of its own needs a commit; run `reca run` in place")
    folder = Path(os.environ.get(WORKSPACES) or root.parent / f"{root.name}-workspaces")
    prune_worktrees(root, state, folder)
    place = folder / run_id
    folder.mkdir(parents=True, exist_ok=True)
    run_tool(["git", "worktree", "add", "--detach", str(place), "HEAD"], root)
    remote = _share_dvc(root, place)
    run_tool([*DVC, "checkout", "--allow-missing", "--quiet"], place)
    commit = run_tool(["git", "rev-parse", "--short", "HEAD"], place).strip()
    say(f"working on commit {commit} in {place}; uncommitted changes of {root} are not part of it")
    yield place
    if remote:
        try:
            run_tool([*DVC, "push", "--quiet"], place)
        except UserError as error:
            say(f"the results are in the local cache only, the remote does not take them: {error}")


def _share_dvc(root: Path, place: Path) -> bool:
    """Give a worktree the project's cache and remotes, whose relative paths would lead astray from there."""
    cache = run_tool([*DVC, "cache", "dir"], root).strip()
    remotes = REMOTE.findall(run_tool([*DVC, "remote", "list"], root))
    local = root / ".dvc/config.local"
    text = local.read_text() if local.is_file() else ""
    if "[cache]" not in text:
        text += f'[cache]\n    dir = {cache}\n    type = "reflink,hardlink,copy"\n'
    for name, url, _ in remotes:
        section = f"""['remote "{name}"']"""
        if section not in text:
            text += f"{section}\n    url = {url}\n"
    write_text(place / ".dvc/config.local", text)
    return any(default for _, _, default in remotes)


def prune_worktrees(root: Path, state: Path, folder: Path) -> None:
    """Remove worktrees whose run is over or dead, but for the last ones."""
    places = [place for place in folder.glob("*") if (place / ".git").is_file()] if folder.is_dir() else []
    idle = [place for place in places if lease_expired(state, place.name) or not lease_path(state, place.name).exists()]
    for place in sorted(idle, key=lambda place: place.stat().st_mtime, reverse=True)[KEPT_WORKSPACES:]:
        shutil.rmtree(place, ignore_errors=True)
    run_tool(["git", "worktree", "prune"], root)


def remove_unlisted_outputs(root: Path, benchmarks: Collection[str]) -> list[str]:
    """Remove samples and scores of benchmarks that are measured no longer.

    ``report`` depends on these folders as a whole, so what an earlier configuration left there would be a part of its
    hash, on this machine only. Only what ``dvc.lock`` tells of goes: DVC's cache has it, and a benchmark that is
    listed again comes back from there.

    Returns:
        The names of the benchmarks whose outputs went.
    """
    removed = set()
    for path in (Path(out["path"]) for stage in read_lock(root).values() for out in stage.get("outs", [])):
        name = path.name.split(".")[0]
        if path.parts[:2] not in MEASURED or name in benchmarks or not (root / path).exists():
            continue
        removed.add(name)
        shutil.rmtree(root / path) if (root / path).is_dir() else (root / path).unlink()
    return sorted(removed)


def run_tool(command: list[str], folder: Path) -> str:
    """Run git or DVC, shortly; returns what it said.

    Raises:
        UserError: It is not installed, or failed; holds its own words.
    """
    words = " ".join(command[2:] if command[0] == sys.executable else command)
    # COLUMNS: DVC lays lists out as tables and would break a long path over two lines.
    environment = {**os.environ, "DVC_NO_ANALYTICS": "1", "GIT_TERMINAL_PROMPT": "0", "COLUMNS": "10000"}
    try:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise UserError(f"`{words}` cannot run: {command[0]} is not installed") from None
    if done.returncode != 0:
        raise UserError(f"`{words}` failed in {folder}: {' '.join(done.stderr.split())[:600]}")
    return done.stdout


def prepare_dvc(root: Path) -> str | None:
    """Let DVC work where there is no git.

    Returns:
        What the user should know, if anything.

    Raises:
        UserError: The folder is no DVC project.
    """
    if not (root / ".dvc").is_dir():
        raise UserError(f"{root} is no DVC project: run `dvc init` there (without git: `dvc init --no-scm`)")
    if any((folder / ".git").exists() for folder in (root, *root.parents)):
        return None
    run_tool([*DVC, "config", "--local", "core.no_scm", "true"], root)
    return "no git repository: the run works, but nobody will know which code made the model"
