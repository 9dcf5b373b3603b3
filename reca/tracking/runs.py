"""MLflow's record of a pipeline run: one run with parameters, curves, scores, the data set and what came out.

The default store is SQLite at ``mlruns/mlflow.db`` with artifacts in ``mlruns/artifacts``, both by absolute path:
MLflow's own defaults depend on the working directory. ``MLFLOW_TRACKING_URI`` or ``tracking.uri`` name another
store; a worktree of an isolated run is handed the project's store that way.
"""

import csv
import fcntl
import math
import os
import re
import socket
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_UV_AUTO_DETECT", "false")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # the default tries an absent server for minutes

import mlflow
import psutil  # type: ignore[import-untyped]
from mlflow.data.dataset_source import DatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import DatasetInput, InputTag, Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from reca.config import Config
from reca.runtime.errors import UserError
from reca.tracking.lineage import Lineage, dvc_cache
from reca.tracking.store_errors import check_database, explained, is_absent

URI = "MLFLOW_TRACKING_URI"
FLOW_RUN = "RECA_FLOW_RUN_ID"
"""Set by the flow for its stages, so that MLflow's run names Prefect's."""
LINEAGE, PROCESS = "lineage.digest", "reca.process"
BATCH = 1000
"""Metrics per ``log_batch``: MLflow's limit."""
Client = Any
"""``mlflow.MlflowClient``; MLflow's types are not followed (pyproject.toml)."""


class DvcSource(DatasetSource):
    """Data that DVC keeps, as MLflow's pages name it."""

    def __init__(self, path: str, md5: str, commit: str | None) -> None:
        self._facts = {"path": path, "md5": md5, "git_commit": commit or ""}

    @staticmethod
    def _get_source_type() -> str:
        return "dvc"

    def load(self) -> Any:
        """Data stays where it is: `dvc pull` at the commit brings it back."""
        raise NotImplementedError("check out the commit, then run `dvc pull`")

    @staticmethod
    def _can_resolve(raw_source: Any) -> bool:
        return False

    @classmethod
    def _resolve(cls, raw_source: Any) -> "DvcSource":
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """Path, DVC hash and commit."""
        return self._facts

    @classmethod
    def from_dict(cls, source_dict: dict[str, Any]) -> "DvcSource":
        """The inverse of :meth:`to_dict`."""
        return cls(source_dict["path"], source_dict["md5"], source_dict["git_commit"])


@dataclass(frozen=True)
class Store:
    """Where runs and versions are kept."""

    uri: str
    database: Path | None
    """The SQLite file; ``None`` for a server."""
    artifacts: Path | None
    """Where artifacts go; ``None``: the server decides."""
    lock: Path
    """Held while the registry is changed; beside the database, so all who share one share the other."""
    experiment: str


def locate(config: Config, root: Path) -> Store:
    """The store of a project.

    Raises:
        UserError: ``tracking.uri`` holds a password, which would be written into ``params.yaml`` and logged.
    """
    uri = config.tracking.uri or os.environ.get(URI) or f"sqlite:///{root.resolve() / 'mlruns/mlflow.db'}"
    if config.tracking.uri and re.search(r"//[^/@]*:[^/@]+@", config.tracking.uri):
        raise UserError(f"tracking.uri holds a password; leave it null and set {URI} in the environment instead")
    if uri.startswith("sqlite:///"):
        database = (root / uri.removeprefix("sqlite:///")).resolve()
        folder = database.parent
        return Store(
            f"sqlite:///{database}",
            database,
            folder / "artifacts",
            folder / "registry.lock",
            config.tracking.experiment,
        )
    state = root / config.paths.state
    return Store(uri, None, None, state / "registry.lock", config.tracking.experiment)


@contextmanager
def opened(store: Store) -> Iterator[Client]:
    """MLflow set to the store, under the store's lock, with its errors in words.

    Only one process changes the registry at a time: "compare with the champion, then move the alias" is one step.
    The lock is the kernel's, so it dies with its holder.

    Raises:
        UserError: The store is broken, full, read-only or not reachable; the message names the file and the way out.
    """
    with explained(store.database, store.uri), _locked(store.lock), _used(store):
        if store.database is not None and is_absent(store.database):
            create_database(store.database)
        check_database(store.database)
        yield mlflow.MlflowClient(store.uri)


@contextmanager
def reading(store: Store) -> Iterator[Client]:
    """As :func:`opened`, without the lock and without creating anything.

    Raises:
        UserError: There is no database yet, or it cannot be read.
    """
    if store.database is not None and is_absent(store.database):
        raise UserError(f"nothing is registered yet: {store.database} does not exist; `reca run` makes the first model")
    with explained(store.database, store.uri), _used(store):
        check_database(store.database)
        yield mlflow.MlflowClient(store.uri)


def create_database(database: Path) -> None:
    """Migrate a new database under a temporary name: one that was killed half-way is never taken for whole."""
    _quiet()
    print(f"making {database} (once; some seconds)", flush=True)
    database.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=database.parent, prefix=".mlflow-") as folder:
        new = Path(folder) / database.name
        SqlAlchemyStore(f"sqlite:///{new}", str(database.parent / "artifacts"))._dispose_engine()
        os.replace(new, database)


def experiment_id(client: Client, store: Store) -> str:
    """The experiment of the store, made when it is not there.

    Raises:
        UserError: The project was moved, so that new artifacts would go to its old place.
    """
    found = client.get_experiment_by_name(store.experiment)
    wanted = str(store.artifacts) if store.artifacts else None
    if found is None:
        return client.create_experiment(store.experiment, artifact_location=wanted)
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    there = found.artifact_location.removeprefix("file://")
    if wanted is not None and there.startswith("/") and there != wanted:
        raise UserError(
            f"{store.database} keeps the artifacts of experiment {store.experiment!r} in {there}, "
            f"not in {wanted}: the project was moved or copied. Move it back, or set tracking.experiment to a new name"
        )
    return found.experiment_id


def reconcile(client: Client, experiment: str) -> list[str]:
    """Mark runs that say RUNNING although their process is gone as KILLED; returns their ids."""
    dead = [
        run.info.run_id
        for run in client.search_runs([experiment], f"attributes.status = 'RUNNING' and tags.`{PROCESS}` LIKE '%'")
        if _is_gone(run.data.tags.get(PROCESS, ""))
    ]
    for run_id in dead:
        client.set_terminated(run_id, "KILLED")
        for model in client.search_logged_models([experiment], f"source_run_id = '{run_id}'"):
            if str(model.status) != "READY":
                client.finalize_logged_model(model.model_id, "FAILED")
    return dead


def find_finished(client: Client, experiment: str, digest: str) -> Any | None:
    """The finished run of a lineage, if there is one: a registration may have been killed after it."""
    query = f"attributes.status = 'FINISHED' and tags.`{LINEAGE}` = '{digest}'"
    runs = client.search_runs([experiment], query, max_results=1)
    return runs[0] if runs else None


def artifact(client: Client, run_id: str, path: str) -> Path:
    """A file or folder that a run logged, on this machine.

    Raises:
        FileNotFoundError: The run has no such artifact, or no run of that id is left.
    """
    try:
        return Path(client.download_artifacts(run_id, path)).resolve()
    except MlflowException as error:
        raise FileNotFoundError(f"run {run_id} has no artifact {path!r}: {error.message}") from None


@contextmanager
def started(client: Client, experiment: str, name: str, tags: Mapping[str, str]) -> Iterator[str]:
    """A run (its id) that ends FINISHED, or FAILED when the block raises; fluent MLflow calls go to it."""
    run = client.create_run(experiment, tags={**tags, PROCESS: _this_process()}, run_name=name)
    with mlflow.start_run(run_id=run.info.run_id):
        yield run.info.run_id


def log_params(client: Client, run_id: str, values: Mapping[str, Any]) -> None:
    """Log the flattened configuration in one go."""
    client.log_batch(run_id, params=[Param(key, str(value)) for key, value in values.items()])


def log_metrics(client: Client, run_id: str, values: Mapping[str, float], model_id: str | None = None) -> None:
    """Log single numbers, shown with the run and with its model."""
    now = _milliseconds()
    metrics = [Metric(key, value, now, 0, model_id=model_id, run_id=run_id) for key, value in values.items()]
    _log_in_batches(client, run_id, metrics)


def log_curves(client: Client, run_id: str, files: Iterable[Path]) -> int:
    """Log every column of CSV files over its ``step`` as ``<file>/<column>``; returns how many points.

    A column ``timestamp`` (seconds) dates the points; files without ``step`` are numbered by row.
    """
    metrics = [point for path in files if path.is_file() for point in _read_curve(path)]
    _log_in_batches(client, run_id, metrics)
    return len(metrics)


def log_dataset(client: Client, run_id: str, lineage: Lineage) -> None:
    """Log the data as an input of the run, with DVC's hashes of the tracked source and of the shards."""
    tracked = lineage.artifacts.get(lineage.data_path, "")
    shards = lineage.artifacts.get("outputs/dataset", "")
    source = DvcSource(lineage.data_path, tracked, lineage.git.commit)
    dataset = MetaDataset(source, lineage.data_path[-500:], shards or tracked)
    tags = {
        "mlflow.data.context": "training",
        "dvc.path": lineage.data_path,
        "dvc.md5": tracked,
        "dvc.dataset.md5": shards,
        "dvc.rev": lineage.git.commit or "none",
    }
    entity = DatasetInput(dataset._to_mlflow_entity(), [InputTag(key, value) for key, value in tags.items()])
    client.log_inputs(run_id, [entity])


def run_tags(lineage: Lineage, note: str) -> dict[str, str]:
    """The tags of a run: its lineage, what MLflow's pages show, and the flow that it belongs to."""
    tags = {**lineage_tags(lineage), "mlflow.note.content": note}
    if lineage.git.commit:
        tags["mlflow.source.git.commit"] = lineage.git.commit
    if flow_run := os.environ.get(FLOW_RUN):
        tags["prefect.flow_run_id"] = flow_run
    return tags


def dvc_reference(root: Path, path: str, lineage: Lineage) -> dict[str, str]:
    """What finds an output again in DVC's cache, without copying it.

    Raises:
        UserError: DVC did not record it, so it lies in no cache.
    """
    if not lineage.dvc:
        raise UserError(f"{path} is bigger than tracking.copy_limit_mib and not under DVC; run it with `reca run`")
    return {
        "md5": lineage.artifacts[path],
        "path": path,
        "commit": lineage.git.commit or "",
        "cache": str(dvc_cache(root)),
    }


def lineage_tags(lineage: Lineage) -> dict[str, str]:
    """What a run and a version say about where they come from; values as MLflow stores them."""
    tags = {
        LINEAGE: lineage.digest,
        "git.commit": lineage.git.commit or "none",
        "git.dirty": str(bool(lineage.git.dirty)).lower(),
        "git.note": lineage.git.note,
        "config.digest": lineage.config_digest,
        "base.digest": lineage.base_digest,
        "weights.digest": lineage.weights_digest,
        "dvc.data.path": lineage.data_path,
        "dvc.data.md5": lineage.artifacts.get(lineage.data_path, ""),
        "python": lineage.python,
        "device": lineage.device,
    }
    tags |= {f"dvc.{path}"[:250]: md5 for path, md5 in lineage.artifacts.items() if path.startswith("outputs/")}
    return {key: value[:5000] for key, value in tags.items() if value}


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another process that holds {path}", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _used(store: Store) -> Iterator[None]:
    """Point MLflow's global URI at the store and back: some of its calls read nothing else."""
    _quiet()
    uri, before = mlflow.get_tracking_uri(), os.environ.get(URI)
    mlflow.set_tracking_uri(store.uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(uri)
        if before is None:
            os.environ.pop(URI, None)


def _quiet() -> None:
    import logging

    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _log_in_batches(client: Client, run_id: str, metrics: list[Metric]) -> None:
    for start in range(0, len(metrics), BATCH):
        client.log_batch(run_id, metrics=metrics[start : start + BATCH])


def _read_curve(path: Path) -> Iterable[Metric]:
    now = _milliseconds()
    with path.open(newline="") as file:
        for number, row in enumerate(csv.DictReader(file)):
            step = int(float(row.pop("step", None) or number))
            stamp = row.pop("timestamp", None)
            at = round(float(stamp) * 1000) if stamp else now
            for key, text in row.items():
                if key and text and math.isfinite(value := float(text)):
                    yield Metric(f"{path.stem}/{key}", value, at, step)


def _this_process() -> str:
    return f"{socket.gethostname()} {os.getpid()} {psutil.Process().create_time():.0f}"


def _is_gone(process: str) -> bool:
    """Whether the process of a run is known to have ended; what runs on another host is left alone."""
    try:
        host, pid, born = process.rsplit(" ", 2)
        if host != socket.gethostname():
            return False
        running = psutil.Process(int(pid))
        return running.status() == psutil.STATUS_ZOMBIE or abs(running.create_time() - float(born)) > 2
    except psutil.NoSuchProcess:
        return True
    except ValueError:
        return False


def _milliseconds() -> int:
    return time.time_ns() // 1_000_000
