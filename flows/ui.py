"""``reca ui``: the pages of Prefect and MLflow over what this project has run, on loopback."""

import os
import socket
import sys
import time
from pathlib import Path

from flows.run import prefect_api
from flows.supervisor import Processes
from reca.config import Config
from reca.runtime import workspace
from reca.runtime.errors import UserError
from reca.runtime.ports import free_port

START_SECONDS = 300
QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "1"}


def serve(prefect_port: int, mlflow_port: int) -> int:
    """Serve until Ctrl-C.

    Args:
        prefect_port: Port of Prefect's pages if it is free and no run has started a server.
        mlflow_port: Port of MLflow's pages if it is free.
    """
    root = workspace.project_root()
    config = Config.load(root / "params.yaml")
    state = (root / config.paths.state).resolve()
    processes = Processes(QUIET)
    with prefect_api(state / "prefect", free_port_or(prefect_port)) as wait:
        try:
            mlflow = _start_mlflow(root, state, config, free_port_or(mlflow_port), processes)
            print("starting…", flush=True)
            wait()
            api = os.environ["PREFECT_API_URL"]
            print(f"Prefect  {api.removesuffix('/api')}    stages, logs, artifacts")
            print(f"MLflow   {mlflow}    runs, metrics, registered models")
            print(f"report   {_report(root)}")
            print(f"reca submit and reca deploy use this server, others with PREFECT_API_URL={api}")
            print("Ctrl-C ends them", flush=True)
            while True:
                time.sleep(3600)
        finally:
            processes.stop()


def _start_mlflow(root: Path, state: Path, config: Config, port: int, processes: Processes) -> str:
    """Start MLflow's server on the project's store; return its address, or the reason why there is none."""
    uri = config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")
    if uri and not uri.startswith("sqlite:"):
        return uri
    database = (root / uri.removeprefix("sqlite:///")) if uri else root / "mlruns/mlflow.db"
    if not database.is_file():
        return f"(no model is registered yet: {database} does not exist)"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    store = ["--backend-store-uri", f"sqlite:///{database.resolve()}"]
    artifacts = ["--default-artifact-root", str(database.resolve().parent / "artifacts")]
    process = processes.start([*command, *store, *artifacts], root, state / "logs/mlflow-server.log")
    deadline = time.monotonic() + START_SECONDS
    while not _listens(port):
        if not process.running() or time.monotonic() > deadline:
            raise UserError(f"MLflow's server does not start; see its log: {process.log}")
        time.sleep(0.2)
    return f"http://127.0.0.1:{port}"


def free_port_or(preferred: int) -> int:
    """Return the preferred port if it is free, else any free port."""
    return free_port() if _listens(preferred) else preferred


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _report(root: Path) -> str:
    page = root / "outputs/report/index.html"
    return page.as_uri() if page.is_file() else "(none yet: `reca run` creates it)"
