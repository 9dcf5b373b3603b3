"""``reca ui``: the pages of Prefect and MLflow over what this project has run, on loopback."""

import os
import socket
import sys
import time
from pathlib import Path

from flows.run import prefect_api
from flows.server import free_port
from flows.supervisor import Processes
from reca.config import Config
from reca.runtime import workspace
from reca.runtime.errors import UserError

START_SECONDS = 300
QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "1"}


def serve(prefect_port: int, mlflow_port: int) -> int:
    """Serve until Ctrl-C.

    Args:
        prefect_port: Where Prefect's pages go if the port is free and no run has a server already.
        mlflow_port: Where MLflow's pages go if the port is free.
    """
    root = workspace.project_root()
    config = Config.load(root / "params.yaml")
    state = (root / config.paths.state).resolve()
    processes = Processes(QUIET)
    with prefect_api(state / "prefect", port_near(prefect_port)) as wait:
        try:
            mlflow = _start_mlflow(root, state, config, port_near(mlflow_port), processes)
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
    """Start MLflow's server over the project's store; returns where, or why not."""
    named = config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")
    if named and not named.startswith("sqlite:"):
        return named
    database = (root / named.removeprefix("sqlite:///")) if named else root / "mlruns/mlflow.db"
    if not database.is_file():
        return f"(nothing has been registered yet: {database} is not there)"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    store = ["--backend-store-uri", f"sqlite:///{database.resolve()}"]
    artifacts = ["--default-artifact-root", str(database.resolve().parent / "artifacts")]
    process = processes.start([*command, *store, *artifacts], root, state / "logs/mlflow-server.log")
    deadline = time.monotonic() + START_SECONDS
    while not _listens(port):
        if not process.running() or time.monotonic() > deadline:
            raise UserError(f"MLflow's server does not start; its log: {process.log}")
        time.sleep(0.2)
    return f"http://127.0.0.1:{port}"


def port_near(wanted: int) -> int:
    """The wanted port if nothing listens there, any free one otherwise."""
    return free_port() if _listens(wanted) else wanted


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _report(root: Path) -> str:
    page = root / "outputs/report/index.html"
    return page.as_uri() if page.is_file() else "(none yet: `reca run` makes it)"
