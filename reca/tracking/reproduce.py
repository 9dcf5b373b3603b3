"""Commands on registered models: print the lineage, roll back, reproduce.

``reca lineage NAME@ALIAS``, ``reca rollback NAME``, ``reca reproduce NAME@ALIAS``.
"""

import argparse
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlflow.exceptions import MlflowException

from reca.config import Config, flatten, yaml_io
from reca.runtime.errors import UserError
from reca.runtime.files import write_text
from reca.runtime.hashing import weights_digest
from reca.runtime.workspace import DVC, add_worktree, run_tool
from reca.tracking import registry, runs
from reca.tracking.lineage import LOCK, current_versions
from reca.tracking.registry import Version

PARAMS, STATE = "params.yaml", ".reca"
"""The worktree has its own state folder: in the project's, training would find its finished checkpoints."""
DELTAS = "report/deltas.json"


@dataclass(frozen=True)
class VersionRecord:
    """A version with everything that its run recorded."""

    version: Version
    run: Mapping[str, str]
    """``id``, ``status``, ``started``."""
    parameters: Mapping[str, Any]
    lineage: Mapping[str, Any]
    """The value of :meth:`reca.tracking.lineage.Lineage.to_dict`."""
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
class ReproducedValue:
    """A recorded value and the reproduced one."""

    name: str
    recorded: str
    reproduced: str

    @property
    def equal(self) -> bool:
        """Equal to the last digit."""
        return self.recorded == self.reproduced


def lineage_command(arguments: argparse.Namespace, root: Path) -> int:
    """``reca lineage NAME@ALIAS [--json]``: version, run, parameters, data, git, base.

    Raises:
        UserError: There is no such version.
    """
    record = read_version_record(root, arguments.model)
    if getattr(arguments, "json", False):
        print(json.dumps(record.to_dict(), indent=2, ensure_ascii=False))
    else:
        print("\n".join(format_lineage(record)))
    return 0


def rollback_command(arguments: argparse.Namespace, root: Path) -> int:
    """``reca rollback NAME``: make the previous champion the champion again.

    Raises:
        UserError: There is no previous champion.
    """
    with runs.open_store(runs.locate_store(Config.load(root / "params.yaml"), root)) as client:
        rolled_back, champion = registry.rollback(client, arguments.name)
    print(f"{champion} is champion again; version {rolled_back.number} was rolled back")
    return 0


def reproduce_command(arguments: argparse.Namespace, root: Path) -> int:
    """``reca reproduce NAME@ALIAS [--no-from-scratch]``: run the stages of a version at its commit, and compare.

    With ``from_scratch`` (the default) every stage runs; without, DVC restores cached outputs, which only shows that
    they still exist.

    Returns:
        0 when weights and scores are equal to the last bit, else 1.

    Raises:
        UserError: The version names no commit, the commit is not here, or a stage fails.
    """
    record = read_version_record(root, arguments.model)
    for note in reproducibility_notes(record):
        print(f"note: {note}")
    from_scratch = getattr(arguments, "from_scratch", True)
    with checkout_worktree(root, record) as worktree:
        prepare_worktree(worktree, record)
        run_stages(worktree, from_scratch)
        rows = compare(record, worktree)
        equal = all(row.equal for row in rows)
        print("\n".join(format_table(rows)))
        if equal:
            print(f"{record.version}: reproduced, weights and scores are equal to the last bit")
            return 0
        folder = Path(tempfile.mkdtemp(prefix="reca-reproduced-"))
        shutil.move(worktree / "outputs", folder / "outputs")
    print(f"{record.version}: NOT reproduced; the reproduced outputs are in {folder / 'outputs'}")
    return 1


def read_version_record(root: Path, reference: str) -> VersionRecord:
    """Return everything that the registry and the run recorded about a version.

    Raises:
        UserError: There is no such version, or its run or its files no longer exist.
    """
    store = runs.locate_store(Config.load(root / "params.yaml"), root)
    with runs.open_store_read_only(store) as client:
        version = registry.get_version(client, reference)
        try:
            run = client.get_run(version.run_id)
            files = runs.download_artifact(client, version.run_id, "")
            lineage = json.loads((files / "lineage.json").read_text())
        except (MlflowException, OSError, ValueError) as error:
            raise UserError(f"the run {version.run_id} of {version} cannot be read: {error}") from error
    started = datetime.fromtimestamp(run.info.start_time / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    facts = {"id": run.info.run_id, "status": run.info.status, "started": started}
    return VersionRecord(version, facts, dict(run.data.params), lineage, files)


def format_lineage(record: VersionRecord) -> Iterator[str]:
    """Yield the lineage as lines: version, run, parameters, data, git, base."""
    version, lineage = record.version, record.lineage
    git, artifacts = lineage["git"], lineage["artifacts"]
    by = "DVC" if lineage["dvc"] else "computed at registration; DVC did not run the stages"
    yield f"{version} ({', '.join(version.aliases) or 'no alias'}): {version.tags.get('verdict', 'no verdict')}"
    if version.tags.get("verdict.reasons", "none") != "none":
        yield f"│    {version.tags['verdict.reasons']}"
    yield f"├─ run         {record.run['id']}  {record.run['status']}, {record.run['started']}"
    yield f"├─ parameters  digest {lineage['config_digest']}, {len(record.parameters)} values"
    yield from (f"│    {key} = {record.parameters[key]}" for key in sorted(record.parameters))
    yield f"├─ data        {lineage['data_path']}  md5 {artifacts.get(lineage['data_path'], 'not recorded')} ({by})"
    yield f"│    outputs/dataset  md5 {artifacts.get('outputs/dataset', 'not recorded')}"
    yield f"├─ weights     sha256 {lineage['weights_digest']}"
    yield f"├─ git commit  {git['commit'] or 'none'}" + (f"  ({git['note']})" if git["note"] else "")
    yield f"├─ base        sha256 {lineage['base_digest']}  {record.parameters.get('model.checkpoint', '')}"
    yield f"├─ made on     {lineage['device']}, Python {lineage['python']}, {lineage['platform']}"
    yield f"└─ with        {', '.join(f'{name} {number}' for name, number in lineage['versions'].items())}"


def reproducibility_notes(record: VersionRecord) -> Iterator[str]:
    """Yield the reasons why a reproduction may differ."""
    git = record.lineage["git"]
    if git["dirty"]:
        applied = "the recorded changes to tracked files are applied"
        has_patch = (record.files / "uncommitted.patch").is_file()
        yield f"it was made with {git['note']}; {applied if has_patch else 'these changes were not recorded'}"
    installed, recorded = current_versions(), record.lineage["versions"]
    changes = [
        f"{name} {version} then, {installed.get(name, 'absent')} now"
        for name, version in recorded.items()
        if version != installed.get(name)
    ]
    if changes:
        yield f"other package versions: {'; '.join(changes)}"
    if record.lineage["device"].startswith("cuda"):
        yield "it was made on a GPU, where equal bits are not promised"


@contextmanager
def checkout_worktree(root: Path, record: VersionRecord) -> Iterator[Path]:
    """Check out the version's commit outside the repository, and remove it after the block.

    Raises:
        UserError: No commit was recorded, or it is not in this repository.
    """
    commit = record.lineage["git"]["commit"]
    if commit is None:
        raise UserError(f"{record.version} cannot be reproduced: {record.lineage['git']['note']}")
    try:
        run_tool(["git", "cat-file", "-e", f"{commit}^{{commit}}"], root)
    except UserError:
        message = f"commit {commit} of {record.version} is not in this repository; get it with `git fetch --all`"
        raise UserError(message) from None
    with tempfile.TemporaryDirectory(prefix="reca-reproduce-") as folder:
        worktree = Path(folder) / "project"
        add_worktree(root, worktree, commit)
        try:
            yield worktree
        finally:
            with suppress(UserError):  # git forgets a worktree whose folder is gone
                run_tool(["git", "worktree", "remove", "--force", str(worktree)], root)


def prepare_worktree(worktree: Path, record: VersionRecord) -> None:
    """Apply the recorded parameters, hashes and changes to a worktree, and get the data from DVC's cache or remote."""
    patch = record.files / "uncommitted.patch"
    if patch.is_file():
        try:
            run_tool(["git", "apply", "--whitespace=nowarn", str(patch)], worktree)
        except UserError as error:
            raise UserError(f"the recorded changes of {record.version} do not apply to their commit: {error}") from None
    if (record.files / LOCK).is_file():
        shutil.copyfile(record.files / LOCK, worktree / LOCK)
    parameters = yaml_io.load(record.files / PARAMS)
    parameters["paths"]["state"] = STATE
    write_text(worktree / PARAMS, yaml_io.dumps(parameters))
    pointer = record.lineage["data_pointer"]
    if pointer:
        write_text(worktree / pointer, (record.files / Path(pointer).name).read_text())
    # Only the data is needed: everything else is made again. Data missing from the cache comes from the remote.
    run_tool([*DVC, "checkout", "--quiet", "--allow-missing"], worktree)
    if pointer and not (worktree / record.lineage["data_path"]).exists():
        run_tool([*DVC, "pull", pointer], worktree)


def run_stages(worktree: Path, from_scratch: bool) -> None:
    """Run all stages of a worktree; with ``from_scratch``, cached results are not used.

    Raises:
        UserError: A stage failed; its output was printed.
    """
    forced = ["--force", "--no-run-cache"] if from_scratch else ["--pull"]
    command = [*DVC, "--wait-for-lock", "repro", *forced]
    run_tool(command, worktree, show_output=True, PYTHONPATH=str(worktree))  # the worktree's code


def compare(record: VersionRecord, worktree: Path) -> list[ReproducedValue]:
    """Compare weights and scores with the recorded ones."""
    recorded = json.loads((record.files / DELTAS).read_text())
    reproduced = json.loads((worktree / "outputs" / DELTAS).read_text())
    weights = weights_digest(worktree / "outputs/model")
    rows = [ReproducedValue("weights (sha256)", record.lineage["weights_digest"], weights)]
    before, after = flatten(recorded), flatten(reproduced)
    for key in sorted({*before, *after}):
        if key.endswith((".base", ".aligned")):
            rows.append(ReproducedValue(key, repr(before.get(key)), repr(after.get(key))))
    return rows


def format_table(rows: Sequence[ReproducedValue]) -> Iterator[str]:
    """Yield the comparison as aligned lines."""
    width = max(len(row.name) for row in rows)
    yield f"{'':{width}}  {'recorded':20}  {'reproduced':20}"
    for row in rows:
        sign = "equal" if row.equal else "DIFFERS"
        yield f"{row.name:{width}}  {row.recorded[:20]:20}  {row.reproduced[:20]:20}  {sign}"
