"""Lineage of a model: git commit, DVC hashes, configuration, base weights, versions, device.

DVC's records are read from ``dvc.lock``. git, DVC and a repository are optional: a note in the lineage says which is
absent.
"""

import configparser
import hashlib
import json
import os
import platform
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from reca.config import Config, flatten
from reca.runtime.dvc_lock import LOCK, parameter_differences, read_lock, recorded_hashes
from reca.runtime.errors import UserError
from reca.runtime.hashing import json_digest, weights_digest
from reca.runtime.workspace import DVC, run_tool

RESULT_SECTIONS = ("model", "data", "extract", "train", "generate", "evaluate", "register", "seed")
"""The sections of the configuration that change a result."""
GENERATED_FILES = ("params.yaml", LOCK)
"""Files that every run rewrites; the run stores them as artifacts, and they do not make a tree dirty."""
PACKAGES = (
    "torch",
    "transformers",
    "diffusers",
    "accelerate",
    "safetensors",
    "numpy",
    "pillow",
    "pyarrow",
    "pydantic",
    "hydra-core",
    "dvc",
    "prefect",
    "mlflow",
)


@dataclass(frozen=True)
class Git:
    """The state of the repository."""

    commit: str | None
    """``None``: there is no repository, see ``note``."""
    dirty: tuple[str, ...] = ()
    """Changed or untracked files, except the generated ones."""
    note: str = ""
    """A warning for readers: no repository, no commit, uncommitted changes."""


@dataclass(frozen=True)
class Lineage:
    """The origin of a registered version."""

    git: Git
    dvc: bool
    """``True`` if DVC recorded the hashes, ``False`` if they were computed here in DVC's way."""
    data_path: str
    data_pointer: str
    """The ``.dvc`` file of the data or of a folder that contains it; empty if there is none."""
    artifacts: Mapping[str, str]
    """Path -> MD5 (of a folder: ``….dir``) of the inputs and outputs of all stages."""
    config_digest: str
    base_digest: str
    weights_digest: str
    evidence_digest: str
    """Hash of the scores, so that a model that is measured again is registered again."""
    python: str = ""
    device: str = ""
    platform: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """The identity of a registration (32 hex digits): equal data, configuration, base, weights and scores.

        Commit, versions and device are excluded: they explain a result but do not define it.
        """
        parts = (
            self.artifacts.get("outputs/dataset", ""),
            self.config_digest,
            self.base_digest,
            self.weights_digest,
            self.evidence_digest,
        )
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, as in ``lineage.json``."""
        return {"digest": self.digest, **asdict(self)}


def collect_lineage(config: Config, root: Path) -> Lineage:
    """Read the lineage of the model in ``outputs/``.

    Raises:
        UserError: Base or aligned weights, or the report, are missing.
    """
    lock = read_lock(root)
    # The lock file keeps stages that no longer exist: a benchmark that was removed, a data set of another source.
    artifacts = {path: md5 for path, md5 in recorded_hashes(lock).items() if (root / path).exists()}
    for path in ("outputs/dataset", "outputs/model", config.data.path):
        if path not in artifacts and (root / path).exists():
            artifacts[path] = dvc_md5(root / path)
    pointer = find_dvc_pointer(root, config.data.path)
    # `dvc add` writes the pointer and adds the data to the .gitignore next to it: part of preparing a run.
    by_dvc = (pointer, (Path(pointer).parent / ".gitignore").as_posix()) if pointer else ()
    return Lineage(
        git=read_git(root, generated=(*GENERATED_FILES, *by_dvc)),
        dvc=bool(lock),
        data_path=config.data.path,
        data_pointer=pointer,
        artifacts=dict(sorted(artifacts.items())),
        config_digest=json_digest(config.to_dict(*RESULT_SECTIONS), 16),
        base_digest=base_digest(config, root),
        weights_digest=weights_digest(root / "outputs/model"),
        evidence_digest=_evidence_digest(root / "outputs/report"),
        python=platform.python_version(),
        device=_device(config.hardware.device),
        platform=platform.platform(),
        versions=current_versions(),
    )


def find_dvc_pointer(root: Path, path: str) -> str:
    """Return the ``.dvc`` file of ``path`` or of a folder above it, relative to the project; empty if none exists."""
    inside = not Path(path).is_absolute()
    folders = [Path(path), *Path(path).parents][:-1] if inside else []
    return next((f"{folder.as_posix()}.dvc" for folder in folders if (root / f"{folder}.dvc").is_file()), "")


def dvc_cache(root: Path) -> Path:
    """Return the folder of DVC's cache according to the project's settings."""
    settings = configparser.ConfigParser(interpolation=None)
    settings.read([root / ".dvc/config", root / ".dvc/config.local"])
    return root / ".dvc" / settings.get("cache", "dir", fallback="cache")


def base_digest(config: Config, root: Path) -> str:
    """Return the digest of the base weights.

    Raises:
        UserError: The base model is missing.
    """
    folder = root / config.model.checkpoint
    if folder.is_dir():
        return weights_digest(folder)
    raise UserError(
        f"the base model {folder} is missing; restore it (`git checkout -- {config.model.checkpoint}` or `dvc pull`), "
        "or make it with `python -m tools.tiny_bases`"
    )


def read_git(root: Path, generated: tuple[str, ...] = GENERATED_FILES) -> Git:
    """Return the commit that is checked out at ``root`` and the files that differ from it; never raises."""
    top = _git(root, "rev-parse", "--show-toplevel")
    if top is None or Path(top.strip()).resolve() != root.resolve():
        return Git(None, note="no git repository: the code that made this model is not recorded")
    commit = _git(root, "rev-parse", "--verify", "--quiet", "HEAD")
    if commit is None:
        return Git(None, note="the git repository has no commit yet: the code that made this model is not recorded")
    status = _git(root, "--no-optional-locks", "status", "--porcelain", "-z", "--no-renames") or ""
    dirty = tuple(sorted({entry[3:] for entry in status.split("\0") if entry} - set(generated)))
    note = f"{len(dirty)} uncommitted file{'s' * (len(dirty) != 1)}: {_some(dirty)}" if dirty else ""
    return Git(commit.strip(), dirty, note)


def uncommitted_patch(root: Path, limit_bytes: int = 4_000_000) -> str | None:
    """Return the diff against HEAD with new files; ``None`` without a diff or git, or above the limit."""
    excluded = [f":(exclude){name}" for name in GENERATED_FILES]
    new = (_git(root, "ls-files", "--others", "--exclude-standard", "-z") or "").split("\0")
    if sum((root / name).stat().st_size for name in new if name and (root / name).is_file()) > limit_bytes:
        return None
    with tempfile.TemporaryDirectory() as folder:  # an index of its own: the user's stays as it is
        index = {"GIT_INDEX_FILE": f"{folder}/index"}
        _git(root, "read-tree", "HEAD", **index)
        _git(root, "add", "--all", "--", ".", *excluded, **index)
        patch = _git(root, "diff", "--cached", "--binary", "HEAD", "--", ".", *excluded, **index)
    return patch if patch and len(patch) <= limit_bytes else None


def check_params(root: Path) -> None:
    """Check that every stage ran with the parameters that DVC recorded for it.

    Raises:
        UserError: They differ; the message names the stage and the key.
    """
    for stage in read_lock(root):
        if differences := parameter_differences(root, stage):
            raise UserError(
                f"false lineage: {differences[0]}: params.yaml was changed while it ran. Run it again: "
                f"`dvc repro --force -s {stage}`"
            )


def check_up_to_date(root: Path) -> None:
    """Check by DVC that all stages are up to date: parameters, code, data and the bytes of outputs.

    Raises:
        UserError: Some are stale; the message names the first stages, and what changed.
    """
    if not ((root / ".dvc").is_dir() and (root / "dvc.yaml").is_file()):
        return  # without DVC; the lineage says so
    if fingerprints := [name for name in ("code", "base") if name in read_lock(root)]:  # hash today's code and base
        run_tool([*DVC, "repro", "--quiet", "--single-item", *fingerprints], root)
    status = json.loads(run_tool([*DVC, "status", "--json"], root))
    if stale := [f"{stage} ({_cause(changes)})" for stage, changes in status.items()]:
        raise UserError(
            f"not registered, because the outputs are not those of this project any more: {_some(stale)}. Run "
            "`reca run`, which makes stale outputs again, or go back to the parameters, code and data that made them"
        )


def _cause(changes: Sequence[str | Mapping[str, Any]]) -> str:
    """Return the changes of a stage in `dvc status` as words: ``changed deps: outputs/model modified``."""
    kinds = [{change: ""} if isinstance(change, str) else flatten(dict(change)) for change in changes]
    return "; ".join(f"{key.replace('.', ': ', 1)} {how}".strip() for kind in kinds for key, how in kind.items())


def dvc_md5(path: Path) -> str:
    """Return DVC's hash of a file (MD5 of its bytes) or a folder (MD5 of its sorted listing, with ``.dir``)."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "md5").hexdigest()
    files = {entry.relative_to(path).as_posix(): entry for entry in path.rglob("*") if entry.is_file()}
    listing = [{"md5": dvc_md5(files[name]), "relpath": name} for name in sorted(files)]
    return hashlib.md5(json.dumps(listing, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + ".dir"


def _evidence_digest(report: Path) -> str:
    try:
        deltas = json.loads((report / "deltas.json").read_text())
        benchmark_set = json.loads((report / "verdict.json").read_text())["benchmark_set"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{report} is not a finished report ({error}); run `reca report`") from None
    return json_digest([benchmark_set, deltas], 32)


def _git(root: Path, *arguments: str, **variables: str) -> str | None:
    command = ["git", "-C", str(root), *arguments]
    try:
        process = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError, UnicodeDecodeError):
        return None
    return process.stdout


def _some(names: Sequence[str], most: int = 3) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def _device(name: str) -> str:
    if name != "cpu":
        import torch

        if torch.cuda.is_available():
            return f"cuda: {torch.cuda.get_device_name()}"
    cpuinfo = Path("/proc/cpuinfo")
    match = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.is_file() else None
    return f"cpu: {match.group(1).strip() if match else platform.machine()}"


def current_versions() -> dict[str, str]:
    """Return the installed versions of the packages that may change a result."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions
