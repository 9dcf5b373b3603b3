"""``reca doctor``: is this machine, and is this project, fit for a run? Looks only, changes nothing.

With overrides it predicts what a run would take instead: :mod:`tools.memory`.
"""

import json
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from reca.config import Config, ConfigError

MEMORY_GIB, DISK_GIB = 6, 5
PACKAGES = ("torch", "transformers", "dvc", "prefect", "mlflow", "hydra-core", "sqlalchemy", "fastapi")
GOOD, WARNING, BAD = "ok", "note", "BAD"


@dataclass(frozen=True)
class Finding:
    """One thing looked at."""

    level: str
    """``ok``, ``note`` (a run works, but know this) or ``BAD`` (a run would fail)."""
    what: str
    detail: str


def doctor(root: Path, as_json: bool = False) -> int:
    """Print what was found.

    Returns:
        0, or 1 when something would make a run fail.
    """
    findings = [finding for look in LOOKS for finding in look(root)]
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        width = max(len(finding.what) for finding in findings)
        print("\n".join(f"{finding.level:>4}  {finding.what:<{width}}  {finding.detail}" for finding in findings))
    return int(any(finding.level == BAD for finding in findings))


def _packages(_: Path) -> Iterator[Finding]:
    for name in PACKAGES:
        try:
            yield Finding(GOOD, name, version(name))
        except PackageNotFoundError:
            yield Finding(BAD, name, "not installed; run `make setup`")


def _machine(root: Path) -> Iterator[Finding]:
    yield Finding(GOOD, "cores", str(len(os.sched_getaffinity(0))))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    level = GOOD if memory >= MEMORY_GIB else WARNING
    yield Finding(level, "memory", f"{memory:.0f} GiB; the default job takes up to {MEMORY_GIB}")
    free = shutil.disk_usage(root).free / 2**30
    yield Finding(GOOD if free >= DISK_GIB else WARNING, "free disk", f"{free:.0f} GiB at {root}")
    gpus = sorted(path.name for path in Path("/dev").glob("nvidia[0-9]*"))
    yield Finding(GOOD, "GPUs", ", ".join(gpus) or "none; hardware.device=cpu is the default")


def _versioning(root: Path) -> Iterator[Finding]:
    if not (root / ".dvc").is_dir():
        yield Finding(BAD, "DVC project", f"{root} has no .dvc; run `dvc init` (without git: `dvc init --no-scm`)")
    else:
        yield Finding(GOOD, "DVC project", str(root))
    if shutil.which("git") is None:
        yield Finding(WARNING, "git", "not installed; a model will not know which code made it")
        return
    done = subprocess.run(["git", "status", "--porcelain"], cwd=root, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        yield Finding(WARNING, "git", f"{done.stderr.strip()}; a model will not know which code made it")
    elif done.stdout:
        count = len(done.stdout.splitlines())
        yield Finding(WARNING, "git", f"{count} uncommitted files; they are recorded, but isolated runs leave them out")
    else:
        yield Finding(GOOD, "git", "clean")


def _configuration(root: Path) -> Iterator[Finding]:
    try:
        config = Config.load(root / "params.yaml")
    except ConfigError as error:
        yield Finding(BAD, "params.yaml", str(error))
        return
    yield Finding(GOOD, "params.yaml", f"{config.model.name} on {config.data.source}")
    base = root / config.model.checkpoint
    if base.is_dir() and any(base.iterdir()):
        yield Finding(GOOD, "base model", config.model.checkpoint)
    elif config.model.hub:
        yield Finding(WARNING, "base model", f"{config.model.checkpoint} will be fetched from the hub")
    else:
        yield Finding(BAD, "base model", f"{base} is missing; `git checkout -- {config.model.checkpoint}`")
    for folder in (root, root / config.paths.state, root / "outputs"):
        if folder.exists() and not os.access(folder, os.W_OK):
            yield Finding(BAD, "folder", f"{folder} cannot be written to")


def _registry(root: Path) -> Iterator[Finding]:
    database = root / "mlruns/mlflow.db"
    if not database.exists():
        yield Finding(GOOD, "MLflow", "nothing registered yet")
        return
    try:
        with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
            (answer,) = connection.execute("pragma quick_check(1)").fetchone()
    except sqlite3.Error as error:
        answer = str(error)
    yield (
        Finding(GOOD, "MLflow", str(database))
        if answer == "ok"
        else Finding(BAD, "MLflow", f"{database}: {answer}; move it away to start anew, or restore a copy")
    )


LOOKS: tuple[Callable[[Path], Iterator[Finding]], ...] = (_packages, _machine, _versioning, _configuration, _registry)
