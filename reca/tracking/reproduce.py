"""What one does with a registered model: tell where it came from, take it back, make it again.

``reca lineage NAME@ALIAS``, ``reca rollback NAME``, ``reca reproduce NAME@ALIAS``.
"""

import argparse
import configparser
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from reca.config import Config, flatten, yaml_io
from reca.runtime.errors import UserError
from reca.runtime.files import write_text
from reca.runtime.hashing import weights_digest
from reca.tracking import registry
from reca.tracking import runs as tracking
from reca.tracking.lineage import LOCK, current_versions
from reca.tracking.registry import Version

PARAMS, STATE = "params.yaml", ".reca"
"""The state folder is the worktree's own: with the project's, training would find its finished checkpoints."""
DELTAS = "report/deltas.json"


@dataclass(frozen=True)
class Origin:
    """A version with all that its run recorded."""

    version: Version
    run: Mapping[str, str]
    """``id``, ``status``, ``started``."""
    parameters: Mapping[str, Any]
    lineage: Mapping[str, Any]
    """As :meth:`reca.tracking.lineage.Lineage.to_dict`."""
    files: Path
    """The run's artifacts on this machine."""

    def to_dict(self) -> dict[str, Any]:
        """Version, run, parameters and lineage as plain containers."""
        version = {"name": self.version.name, "version": self.version.number, "aliases": list(self.version.aliases)}
        scores = {
            key.removeprefix("score."): float(value)
            for key, value in self.version.tags.items()
            if key.startswith("score.")
        }
        verdict = {"verdict": self.version.tags.get("verdict"), "reasons": self.version.tags.get("verdict.reasons")}
        return {
            **version,
            **verdict,
            "run": dict(self.run),
            "lineage": dict(self.lineage),
            "scores": scores,
            "parameters": dict(self.parameters),
        }


@dataclass(frozen=True)
class Comparison:
    """One value as it was recorded and as it came out again."""

    what: str
    recorded: str
    again: str
    decides: bool = True
    """Whether the reproduction fails when they differ; other rows only explain."""

    @property
    def equal(self) -> bool:
        """Equal to the last digit."""
        return self.recorded == self.again


def lineage_command(arguments: argparse.Namespace, root: Path) -> int:
    """``reca lineage NAME@ALIAS [--json]``: version, run, parameters, data, git, base.

    Raises:
        UserError: There is no such version.
    """
    origin = read_origin(root, arguments.model)
    if getattr(arguments, "json", False):
        print(json.dumps(origin.to_dict(), indent=2, ensure_ascii=False))
    else:
        print("\n".join(tree(origin)))
    return 0


def rollback_command(arguments: argparse.Namespace, root: Path) -> int:
    """``reca rollback NAME``: the previous champion is champion again.

    Raises:
        UserError: There is no previous champion.
    """
    with tracking.opened(tracking.locate(Config.load(root / "params.yaml"), root)) as client:
        taken_back, champion = registry.rollback(client, arguments.name)
    print(f"{champion} is champion again; version {taken_back.number} was taken back")
    return 0


def reproduce_command(arguments: argparse.Namespace, root: Path) -> int:
    """``reca reproduce NAME@ALIAS [--no-from-scratch]``: make a version again from its commit, and compare.

    With ``from_scratch`` (the default) every stage really runs; without, DVC restores what it has cached, which
    only shows that it is still there.

    Returns:
        0 when weights and scores are equal to the last bit, else 1.

    Raises:
        UserError: The version names no commit, the commit is not here, or a stage fails.
    """
    origin = read_origin(root, arguments.model)
    for note in notes(origin):
        print(f"note: {note}")
    from_scratch = getattr(arguments, "from_scratch", True)
    with worktree(root, origin) as place:
        prepare(place, root, origin)
        run_stages(place, from_scratch)
        rows = compare(origin, place)
        equal = all(row.equal for row in rows if row.decides)
        print("\n".join(table(rows)))
        if equal:
            print(f"{origin.version}: reproduced, weights and scores are equal to the last bit")
            return 0
        kept = Path(tempfile.mkdtemp(prefix="reca-reproduced-"))
        shutil.move(place / "outputs", kept / "outputs")
    print(f"{origin.version}: NOT reproduced; what came out lies in {kept / 'outputs'}")
    return 1


def read_origin(root: Path, reference: str) -> Origin:
    """Everything that the registry and the run recorded about a version.

    Raises:
        UserError: There is no such version, or its run or its files are gone.
    """
    store = tracking.locate(Config.load(root / "params.yaml"), root)
    with tracking.reading(store) as client:
        version = registry.resolve(client, reference)
        try:
            run = client.get_run(version.run_id)
            files = tracking.artifact(client, version.run_id, "")
            lineage = json.loads((files / "lineage.json").read_text())
        except Exception as error:
            raise UserError(f"the run {version.run_id} of {version} cannot be read: {error}") from error
    started = datetime.fromtimestamp(run.info.start_time / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    facts = {"id": run.info.run_id, "status": run.info.status, "started": started}
    return Origin(version, facts, dict(run.data.params), lineage, files)


def tree(origin: Origin) -> Iterator[str]:
    """The lineage as lines: version, run, parameters, data, git, base."""
    version, lineage = origin.version, origin.lineage
    git, artifacts = lineage["git"], lineage["artifacts"]
    by = "DVC" if lineage["dvc"] else "computed at registration; DVC did not run the stages"
    yield f"{version} ({', '.join(version.aliases) or 'no alias'}): {version.tags.get('verdict', 'no verdict')}"
    if version.tags.get("verdict.reasons", "none") != "none":
        yield f"│    {version.tags['verdict.reasons']}"
    yield f"├─ run         {origin.run['id']}  {origin.run['status']}, {origin.run['started']}"
    yield f"├─ parameters  digest {lineage['config_digest']}, {len(origin.parameters)} values"
    yield from (f"│    {key} = {origin.parameters[key]}" for key in sorted(origin.parameters))
    yield f"├─ data        {lineage['data_path']}  md5 {artifacts.get(lineage['data_path'], 'not recorded')} ({by})"
    yield f"│    outputs/dataset  md5 {artifacts.get('outputs/dataset', 'not recorded')}"
    yield f"├─ weights     sha256 {lineage['weights_digest']}"
    yield f"├─ git commit  {git['commit'] or 'none'}" + (f"  ({git['note']})" if git["note"] else "")
    yield f"├─ base        sha256 {lineage['base_digest']}  {origin.parameters.get('model.checkpoint', '')}"
    yield f"├─ made on     {lineage['device']}, Python {lineage['python']}, {lineage['platform']}"
    yield f"└─ with        {', '.join(f'{name} {number}' for name, number in lineage['versions'].items())}"


def notes(origin: Origin) -> Iterator[str]:
    """What may keep the version from coming out again."""
    git = origin.lineage["git"]
    if git["dirty"]:
        applied = "the recorded changes to tracked files are applied"
        there = (origin.files / "uncommitted.patch").is_file()
        yield f"it was made with {git['note']}; {applied if there else 'these changes were not recorded'}"
    now = current_versions()
    then = origin.lineage["versions"]
    moved = [f"{name} {then[name]} then, {now.get(name, 'absent')} now" for name in then if then[name] != now.get(name)]
    if moved:
        yield f"other package versions: {'; '.join(moved)}"
    if origin.lineage["device"].startswith("cuda"):
        yield "it was made on a GPU, where equal bits are not promised"


@contextmanager
def worktree(root: Path, origin: Origin) -> Iterator[Path]:
    """The version's commit, checked out outside the repository for as long as the block runs.

    Raises:
        UserError: No commit was recorded, or it is not in this repository.
    """
    commit = origin.lineage["git"]["commit"]
    if commit is None:
        raise UserError(f"{origin.version} cannot be made again: {origin.lineage['git']['note']}")
    if not _succeeds(["git", "cat-file", "-e", f"{commit}^{{commit}}"], root):
        raise UserError(f"commit {commit} of {origin.version} is not in this repository; get it with `git fetch --all`")
    with tempfile.TemporaryDirectory(prefix="reca-reproduce-") as folder:
        place = Path(folder) / "project"
        _run(["git", "worktree", "add", "--quiet", "--detach", str(place), commit], root)
        try:
            yield place
        finally:
            _succeeds(["git", "worktree", "remove", "--force", str(place)], root)


def prepare(place: Path, root: Path, origin: Origin) -> None:
    """Put the recorded parameters, hashes and changes into a worktree, and the data from DVC's cache or remote."""
    patch = origin.files / "uncommitted.patch"
    if patch.is_file() and not _succeeds(["git", "apply", "--whitespace=nowarn", str(patch)], place):
        raise UserError(f"the recorded changes of {origin.version} do not apply to their commit; see {patch}")
    if (origin.files / LOCK).is_file():
        shutil.copyfile(origin.files / LOCK, place / LOCK)
    parameters = yaml_io.load(origin.files / PARAMS)
    parameters["paths"]["state"] = STATE
    write_text(place / PARAMS, yaml_io.dumps(parameters))
    pointer = origin.lineage["data_pointer"]
    if pointer:
        write_text(place / pointer, (origin.files / Path(pointer).name).read_text())
    _share_cache(place, root)
    # Only the data must come: everything else is made again. What the cache lacks is looked for in the remote.
    _succeeds([*_dvc(), "checkout", "--quiet", "--allow-missing"], place)
    if pointer and not (place / origin.lineage["data_path"]).exists():
        _run([*_dvc(), "pull", pointer], place)


def run_stages(place: Path, from_scratch: bool) -> None:
    """Run the whole graph of a worktree; ``from_scratch``: whatever is cached.

    Raises:
        UserError: A stage failed; its output was shown.
    """
    forced = ["--force", "--no-run-cache"] if from_scratch else ["--pull"]
    _run([*_dvc(), "--wait-for-lock", "repro", *forced], place, shown=True)


def compare(origin: Origin, place: Path) -> list[Comparison]:
    """Weights and scores, recorded and again."""
    recorded = json.loads((origin.files / DELTAS).read_text())
    again = json.loads((place / "outputs" / DELTAS).read_text())
    weights = weights_digest(place / "outputs/model")
    rows = [Comparison("weights (sha256)", origin.lineage["weights_digest"], weights)]
    before, after = flatten(recorded), flatten(again)
    for key in sorted({*before, *after}):
        if key.endswith((".base", ".aligned")):
            rows.append(Comparison(key, repr(before.get(key)), repr(after.get(key))))
    return rows


def table(rows: Sequence[Comparison]) -> Iterator[str]:
    """The comparison as aligned lines."""
    wide = max(len(row.what) for row in rows)
    yield f"{'':{wide}}  {'recorded':20}  {'again':20}"
    for row in rows:
        sign = "equal" if row.equal else "DIFFERS"
        yield f"{row.what:{wide}}  {row.recorded[:20]:20}  {row.again[:20]:20}  {sign}"


def _share_cache(place: Path, root: Path) -> None:
    """Let a worktree use the project's DVC cache and settings, among them remotes given by a relative path."""
    settings = configparser.ConfigParser(interpolation=None)
    settings.read([root / ".dvc/config", root / ".dvc/config.local"])
    if not settings.has_section("cache"):
        settings.add_section("cache")
    settings["cache"]["dir"] = _run([*_dvc(), "cache", "dir"], root).strip()
    for section in settings.values():
        url = section.get("url", "")
        if url and "://" not in url:
            section["url"] = str((root / ".dvc" / url).resolve())
    with (place / ".dvc/config.local").open("w") as file:
        settings.write(file)


def _dvc() -> list[str]:
    return [sys.executable, "-m", "dvc"]


def _environment(place: Path) -> dict[str, str]:
    """``python`` in dvc.yaml means the one that runs now, and its code that of the worktree."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return {**os.environ, "PATH": path, "PYTHONPATH": str(place)}


def _run(command: Sequence[str], folder: Path, shown: bool = False) -> str:
    """Run a command in a folder; its output, or with ``shown`` straight to the terminal.

    Raises:
        UserError: It failed.
    """
    output = None if shown else subprocess.PIPE
    done = subprocess.run(command, cwd=folder, env=_environment(folder), stdout=output, stderr=output, text=True)
    if done.returncode != 0:
        words = " ".join(command).replace(" ".join(_dvc()), "dvc")
        raise UserError(f"`{words}` failed in {folder}" + (f": {done.stderr.strip()}" if done.stderr else ""))
    return done.stdout or ""


def _succeeds(command: Sequence[str], folder: Path) -> bool:
    return subprocess.run(command, cwd=folder, env=_environment(folder), capture_output=True).returncode == 0
