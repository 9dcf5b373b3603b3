"""``reca doctor``: check whether machine and project are ready for a run, without changing anything.

With overrides, ``reca doctor`` predicts memory and time of a run instead: :mod:`tools.memory`.
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
OK, WARN, FAIL = "ok", "WARN", "FAIL"


@dataclass(frozen=True)
class Finding:
    """Outcome of a check."""

    level: str
    """``ok``, ``WARN`` (a run works with a restriction) or ``FAIL`` (a run would fail)."""
    subject: str
    detail: str


def doctor(root: Path, as_json: bool = False) -> int:
    """Print the findings.

    Returns:
        0, or 1 if a run would fail.
    """
    findings = [finding for check in CHECKS for finding in check(root)]
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        width = max(len(finding.subject) for finding in findings)
        print("\n".join(f"{finding.level:>4}  {finding.subject:<{width}}  {finding.detail}" for finding in findings))
    return int(any(finding.level == FAIL for finding in findings))


def _packages(_: Path) -> Iterator[Finding]:
    for name in PACKAGES:
        try:
            yield Finding(OK, name, version(name))
        except PackageNotFoundError:
            yield Finding(FAIL, name, "not installed; run `make setup`")


def _machine(root: Path) -> Iterator[Finding]:
    yield Finding(OK, "cores", str(len(os.sched_getaffinity(0))))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    level = OK if memory >= MEMORY_GIB else WARN
    yield Finding(level, "memory", f"{memory:.0f} GiB; the default job takes up to {MEMORY_GIB}")
    free = shutil.disk_usage(root).free / 2**30
    yield Finding(OK if free >= DISK_GIB else WARN, "free disk", f"{free:.0f} GiB at {root}")
    gpus = sorted(path.name for path in Path("/dev").glob("nvidia[0-9]*"))
    yield Finding(OK, "GPUs", ", ".join(gpus) or "none; hardware.device=cpu is the default")


def _versioning(root: Path) -> Iterator[Finding]:
    if not (root / ".dvc").is_dir():
        yield Finding(FAIL, "DVC project", f"{root} has no .dvc; run `dvc init` (without git: `dvc init --no-scm`)")
    else:
        yield Finding(OK, "DVC project", str(root))
    if shutil.which("git") is None:
        yield Finding(WARN, "git", "not installed; the code that made a model cannot be recorded")
        return
    process = subprocess.run(["git", "status", "--porcelain"], cwd=root, capture_output=True, text=True, check=False)
    if process.returncode != 0:
        yield Finding(WARN, "git", f"{process.stderr.strip()}; the code that made a model cannot be recorded")
    elif process.stdout:
        count = len(process.stdout.splitlines())
        yield Finding(WARN, "git", f"{count} uncommitted files; they are recorded, but isolated runs leave them out")
    else:
        yield Finding(OK, "git", "clean")


def _configuration(root: Path) -> Iterator[Finding]:
    try:
        config = Config.load(root / "params.yaml")
    except ConfigError as error:
        yield Finding(FAIL, "params.yaml", str(error))
        return
    yield Finding(OK, "params.yaml", f"{config.model.name} on {config.data.source}")
    base = root / config.model.checkpoint
    if base.is_dir() and any(base.iterdir()):
        yield Finding(OK, "base model", config.model.checkpoint)
    elif config.model.hub:
        yield Finding(WARN, "base model", f"{config.model.checkpoint} will be fetched from the hub")
    else:
        yield Finding(FAIL, "base model", f"{base} is missing; `git checkout -- {config.model.checkpoint}`")
    for folder in (root, root / config.paths.state, root / "outputs"):
        if folder.exists() and not os.access(folder, os.W_OK):
            yield Finding(FAIL, "folder", f"{folder} cannot be written to")


def _registry(root: Path) -> Iterator[Finding]:
    database = root / "mlruns/mlflow.db"
    if not database.exists():
        yield Finding(OK, "MLflow", "nothing registered yet")
        return
    try:
        with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
            (answer,) = connection.execute("pragma quick_check(1)").fetchone()
    except sqlite3.Error as error:
        answer = str(error)
    yield (
        Finding(OK, "MLflow", str(database))
        if answer == "ok"
        else Finding(FAIL, "MLflow", f"{database}: {answer}; move it away, or restore a copy")
    )


CHECKS: tuple[Callable[[Path], Iterator[Finding]], ...] = (_packages, _machine, _versioning, _configuration, _registry)
