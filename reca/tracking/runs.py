"""MLflow runs: the store, and one run per registration with parameters, curves, scores, data set and artifacts.

The default store is SQLite at ``mlruns/mlflow.db`` with artifacts in ``mlruns/artifacts``, both by absolute path:
MLflow's own defaults depend on the working directory. ``MLFLOW_TRACKING_URI`` or ``tracking.uri`` name another
store; the worktree of an isolated run uses the project's store that way.
"""

import fcntl
import json
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
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # the default retries for minutes

import mlflow
import psutil  # type: ignore[import-untyped]
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from reca.config import Config
from reca.reporting.inputs import read_curve
from reca.runtime.errors import UserError
from reca.tracking.lineage import Lineage, dvc_cache
from reca.tracking.store_errors import check_store, friendly_store_errors, is_absent, is_database

URI_VARIABLE = "MLFLOW_TRACKING_URI"
FLOW_RUN_VARIABLE = "RECA_FLOW_RUN_ID"
"""Set by the flow for its stages, so that the MLflow run names the Prefect run."""
LINEAGE_TAG, PROCESS_TAG = "lineage.digest", "reca.process"
METRICS_PER_REQUEST = 1000
"""Metrics per ``log_batch``: MLflow's limit."""
Client = Any
"""``mlflow.MlflowClient``; MLflow's types are not followed (pyproject.toml)."""


@dataclass(frozen=True)
class Store:
    """The location of runs, versions and artifacts."""

    uri: str
    database: Path | None
    """The SQLite file; ``None`` for a server."""
    artifacts: Path | None
    """Folder of new artifacts, absolute; ``None``: the server decides."""
    lock: Path
    """Held while the registry is changed; next to the database, so that all its users share it."""
    experiment: str


def locate_store(config: Config, root: Path) -> Store:
    """Return the store of a project.

    Raises:
        UserError: ``tracking.uri`` holds a password, which would be written into ``params.yaml`` and logged.
    """
    uri = config.tracking.uri or os.environ.get(URI_VARIABLE) or f"sqlite:///{root.resolve() / 'mlruns/mlflow.db'}"
    if config.tracking.uri and re.search(r"//[^/@]*:[^/@]+@", config.tracking.uri):
        raise UserError(f"tracking.uri holds a password; set it to null and {URI_VARIABLE} in the environment instead")
    if uri.startswith("sqlite:///"):
        database = (root / uri.removeprefix("sqlite:///")).resolve()
        folder = database.parent
        lock = folder / "registry.lock"
        return Store(f"sqlite:///{database}", database, folder / "artifacts", lock, config.tracking.experiment)
    state = (root / config.paths.state).resolve()
    # MLflow would put a database's artifacts under the working directory, which may be a worktree that is removed.
    artifacts = state / "artifacts" if is_database(uri) else None
    return Store(uri, None, artifacts, state / "registry.lock", config.tracking.experiment)


@contextmanager
def open_store(store: Store) -> Iterator[Client]:
    """Yield an MLflow client of the store, under the store's lock, with readable errors.

    Only one process changes the registry at a time: "compare with the champion, then move the alias" is one step.
    The lock is the kernel's: it is released when its holder ends, however that happens.

    Raises:
        UserError: The store is broken, full, read-only or not reachable; the message names the file and the remedy.
    """
    with friendly_store_errors(store.database, store.uri), _locked(store.lock), _selected(store):
        if store.database is not None and is_absent(store.database):
            create_database(store.database)
        check_store(store.database, store.uri)
        yield mlflow.MlflowClient(store.uri)


@contextmanager
def open_store_read_only(store: Store) -> Iterator[Client]:
    """Yield a client like :func:`open_store`, without the lock and without creating a database.

    Raises:
        UserError: There is no database yet, or it cannot be read.
    """
    if store.database is not None and is_absent(store.database):
        raise UserError(f"nothing is registered yet: {store.database} does not exist; `reca run` makes the first model")
    with friendly_store_errors(store.database, store.uri), _selected(store):
        check_store(store.database, store.uri)
        yield mlflow.MlflowClient(store.uri)


def create_database(database: Path) -> None:
    """Create and migrate a database under a temporary name, so that a killed migration leaves no partial database."""
    _quiet()
    print(f"creating {database} (once; takes some seconds)", flush=True)
    database.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=database.parent, prefix=".mlflow-") as folder:
        new = Path(folder) / database.name
        SqlAlchemyStore(f"sqlite:///{new}", str(database.parent / "artifacts"))._dispose_engine()
        os.replace(new, database)


def get_or_create_experiment(client: Client, store: Store) -> str:
    """Return the id of the store's experiment, created if it does not exist.

    Raises:
        UserError: The project was moved, so new artifacts would go to its old folder.
    """
    experiment = client.get_experiment_by_name(store.experiment)
    artifacts = str(store.artifacts) if store.artifacts else None
    if experiment is None:
        return client.create_experiment(store.experiment, artifact_location=artifacts)
    if experiment.lifecycle_stage == "deleted":
        client.restore_experiment(experiment.experiment_id)
    recorded = experiment.artifact_location.removeprefix("file://")
    if store.database is not None and recorded.startswith("/") and recorded != artifacts:
        raise UserError(
            f"{store.database} keeps the artifacts of experiment {store.experiment!r} in {recorded}, "
            f"not in {artifacts}: the project was moved or copied. Move it back, or set tracking.experiment to a new "
            "name"
        )
    return experiment.experiment_id


def mark_killed_runs(client: Client, experiment: str) -> list[str]:
    """Mark runs that are RUNNING although their process has ended as KILLED; return their ids."""
    dead = [
        run.info.run_id
        for run in client.search_runs([experiment], f"attributes.status = 'RUNNING' and tags.`{PROCESS_TAG}` LIKE '%'")
        if _has_ended(run.data.tags.get(PROCESS_TAG, ""))
    ]
    for run_id in dead:
        client.set_terminated(run_id, "KILLED")
        for model in client.search_logged_models([experiment], f"source_run_id = '{run_id}'"):
            if str(model.status) != "READY":
                client.finalize_logged_model(model.model_id, "FAILED")
    return dead


def find_finished_run(client: Client, experiment: str, digest: str) -> Any | None:
    """Return the finished run of a lineage, if any: a registration may have been killed after it."""
    query = f"attributes.status = 'FINISHED' and tags.`{LINEAGE_TAG}` = '{digest}'"
    runs = client.search_runs([experiment], query, max_results=1)
    return runs[0] if runs else None


def download_artifact(client: Client, run_id: str, path: str) -> Path:
    """Return the local path of a file or folder that a run logged.

    Raises:
        FileNotFoundError: The run has no such artifact, or no longer exists.
    """
    try:
        return Path(client.download_artifacts(run_id, path)).resolve()
    except MlflowException as error:
        raise FileNotFoundError(f"run {run_id} has no artifact {path!r}: {error.message}") from None


@contextmanager
def start_run(client: Client, experiment: str, name: str, tags: Mapping[str, str]) -> Iterator[str]:
    """Yield the id of a new active run; it ends FINISHED, or FAILED if the block raises."""
    run = client.create_run(experiment, tags={**tags, PROCESS_TAG: _process_identity()}, run_name=name)
    with mlflow.start_run(run_id=run.info.run_id):
        yield run.info.run_id


def log_params(client: Client, run_id: str, values: Mapping[str, Any]) -> None:
    """Log the flattened configuration in one request."""
    client.log_batch(run_id, params=[Param(key, str(value)) for key, value in values.items()])


def log_metrics(client: Client, run_id: str, values: Mapping[str, float], model_id: str | None = None) -> None:
    """Log single numbers, shown with the run and with its model."""
    now = _milliseconds()
    metrics = [Metric(key, value, now, 0, model_id=model_id, run_id=run_id) for key, value in values.items()]
    _log_in_batches(client, run_id, metrics)


def log_curves(client: Client, run_id: str, files: Iterable[Path]) -> int:
    """Log every column of CSV files over its ``step`` as ``<file>/<column>``; return the number of points.

    A column ``timestamp`` (seconds) dates the points; files without ``step`` are numbered by row.
    """
    metrics = [metric for path in files for metric in _curve_metrics(path)]
    _log_in_batches(client, run_id, metrics)
    return len(metrics)


def log_dataset(client: Client, run_id: str, lineage: Lineage) -> None:
    """Log the data as an input of the run, with DVC's hashes of the tracked source and of the shards."""
    tracked = lineage.artifacts.get(lineage.data_path, "")
    shards = lineage.artifacts.get("outputs/dataset", "")
    source = {"path": lineage.data_path, "md5": tracked, "git_commit": lineage.git.commit or ""}
    dataset = Dataset(lineage.data_path[-500:], shards or tracked or "unknown", "dvc", json.dumps(source))
    tags = {
        "mlflow.data.context": "training",
        "dvc.path": lineage.data_path,
        "dvc.md5": tracked,
        "dvc.dataset.md5": shards,
        "dvc.rev": lineage.git.commit or "none",
    }
    entity = DatasetInput(dataset, [InputTag(key, value) for key, value in tags.items()])
    client.log_inputs(run_id, [entity])


def run_tags(lineage: Lineage, note: str) -> dict[str, str]:
    """Return the tags of a run: its lineage, a note for MLflow's pages, and its flow run."""
    tags = {**lineage_tags(lineage), "mlflow.note.content": note}
    if lineage.git.commit:
        tags["mlflow.source.git.commit"] = lineage.git.commit
    if flow_run := os.environ.get(FLOW_RUN_VARIABLE):
        tags["prefect.flow_run_id"] = flow_run
    return tags


def dvc_reference(root: Path, path: str, lineage: Lineage) -> dict[str, str]:
    """Return the reference by which :mod:`reca.tracking.serving` finds an output in DVC's cache.

    Raises:
        UserError: DVC did not record it, so it is in no cache.
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
    """Return the tags of a run and a version about their origin, cut to MLflow's lengths."""
    tags = {
        LINEAGE_TAG: lineage.digest,
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
def _selected(store: Store) -> Iterator[None]:
    """Set MLflow's global URI to the store, and restore it: some of its calls read only that."""
    _quiet()
    uri, before = mlflow.get_tracking_uri(), os.environ.get(URI_VARIABLE)
    mlflow.set_tracking_uri(store.uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(uri)  # which sets the variable too
        os.environ.pop(URI_VARIABLE, None)
        if before is not None:
            os.environ[URI_VARIABLE] = before


def _quiet() -> None:
    import logging

    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _log_in_batches(client: Client, run_id: str, metrics: list[Metric]) -> None:
    for start in range(0, len(metrics), METRICS_PER_REQUEST):
        client.log_batch(run_id, metrics=metrics[start : start + METRICS_PER_REQUEST])


def _curve_metrics(path: Path) -> Iterator[Metric]:
    columns, now = read_curve(path), _milliseconds()
    steps, timestamps = columns.pop("step", None), columns.pop("timestamp", None)
    for name, values in columns.items():
        for row, value in enumerate(values):
            if math.isfinite(value):
                at = round(timestamps[row] * 1000) if timestamps else now
                yield Metric(f"{path.stem}/{name}", value, at, int(steps[row]) if steps else row)


def _process_identity() -> str:
    return f"{socket.gethostname()} {os.getpid()} {psutil.Process().create_time():.0f}"


def _has_ended(process: str) -> bool:
    """Return whether a run's process has ended; ``False`` for processes of another host."""
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
