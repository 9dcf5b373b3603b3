"""A small project with real git, DVC and Prefect under it; only its stages are stubs."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

SOURCE = Path(__file__).parents[3]

STAGE = '''
"""python stage.py NAME SECONDS: sleep, then write a result; the events go to events.jsonl and pids/."""
import json, os, pathlib, subprocess, sys, time, yaml
name, seconds = sys.argv[1], float(sys.argv[2])
used = {key: value for key, value in yaml.safe_load(open("params.yaml")).items() if key in ("seed", "train")}
home = pathlib.Path(os.environ.get("STUB_HOME", "."))
def log(what):
    with open(home / "events.jsonl", "a") as file:
        event = {"stage": name, "what": what, "at": time.time(), "rate": used["train"]["learning_rate"]}
        event["gpu"] = os.environ.get("CUDA_VISIBLE_DEVICES")
        event["flow_run"] = os.environ.get("RECA_FLOW_RUN_ID")
        file.write(json.dumps(event) + "\\n")
log("begin")
if (home / f"hang-{name}").exists():
    child = subprocess.Popen(["sleep", "600"], start_new_session=True)
    (home / f"pids-{name}").write_text(f"{os.getpid()} {child.pid}")
    time.sleep(600)
for step in range(4):
    time.sleep(seconds / 4)
    print(f"PROGRESS {step + 1}/4 steps 0:01 elapsed", flush=True)
status = home / f"fail-{name}"
if status.exists():
    code = int(status.read_text()); status.unlink()
    print("something is wrong with", name, file=sys.stderr); sys.exit(code)
out = pathlib.Path("outputs", name); out.mkdir(parents=True, exist_ok=True)
(out / "result.json").write_text(json.dumps({"stage": name, "params": used}))
log("end")
'''

DVC_YAML = """
stages:
  report: {cmd: python stage.py report 0.1, deps: [outputs/train, outputs/side], outs: [outputs/report]}
  train:
    {meta: &gpu {resource: gpu}, cmd: python stage.py train 1, params: [train, seed], deps: [outputs/first],
     outs: [outputs/train]}
  side: {meta: *gpu, cmd: python stage.py side 1, params: [seed], deps: [stage.py], outs: [outputs/side]}
  first: {cmd: python stage.py first 0.1, params: [seed], deps: [stage.py], outs: [outputs/first]}
"""

ONE_STAGE = """
stages:
  train: {cmd: python stage.py train 1, params: [train, seed], deps: [stage.py], outs: [outputs/train]}
"""

DVC_CONFIG = """
[core]
    analytics = false
    check_update = false
    remote = near
['remote "near"']
    url = ../../remote
"""

REGISTER = '''
"""The real reca, except for `register`, which needs a model."""
import json, pathlib, sys
import yaml
if sys.argv[1:] == ["register"]:
    state = pathlib.Path(yaml.safe_load(open("params.yaml"))["paths"]["state"])
    state.mkdir(exist_ok=True)
    with open(state / "registered.jsonl", "a") as file:
        file.write(json.dumps(json.load(open("outputs/train/result.json"))["params"]["train"]["learning_rate"]) + "\\n")
else:
    from reca.cli import main
    sys.exit(main())
'''


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="session")
def template(tmp_path_factory) -> Path:
    """The project, committed, before any run."""
    root = tmp_path_factory.mktemp("template") / "project"
    (root / "reca").mkdir(parents=True)
    (root / "reca/__init__.py").write_text(f"__path__.append({str(SOURCE / 'reca')!r})\n")
    (root / "reca/__main__.py").write_text(REGISTER)
    (root / "stage.py").write_text(STAGE)
    (root / "dvc.yaml").write_text(DVC_YAML)
    for name in ("prefect.yaml", "params.yaml"):
        shutil.copy(SOURCE / name, root)
    shutil.copytree(SOURCE / "flows", root / "flows", ignore=shutil.ignore_patterns("__pycache__"))
    (root / ".gitignore").write_text("__pycache__/\n.reca/\n/outputs/\n/mlruns/\n/*.jsonl\n/fail-*\n/hang-*\n/pids-*\n")
    git(root, "init", "-q")
    git(root, "config", "user.email", "test@example.org")
    git(root, "config", "user.name", "test")
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q"], cwd=root, check=True, capture_output=True)
    (root / ".dvc/config").write_text(DVC_CONFIG)
    git(root, "add", "-A")
    git(root, "commit", "-qm", "project")
    return root


@pytest.fixture
def project(template, tmp_path, monkeypatch) -> Path:
    """A copy of the project, as working directory; its worktrees stay in the test's folder."""
    root = tmp_path / "project"
    shutil.copytree(template, root, symlinks=True)
    monkeypatch.chdir(root)
    monkeypatch.setenv("STUB_HOME", str(root))
    monkeypatch.setenv("RECA_WORKSPACES", str(tmp_path / "workspaces"))
    return root


@pytest.fixture
def train_only(project) -> None:
    """Commit a ``dvc.yaml`` with one stage: enough where the graph does not matter."""
    (project / "dvc.yaml").write_text(ONE_STAGE)
    git(project, "commit", "-qam", "one stage")


@pytest.fixture(scope="session")
def server(tmp_path_factory) -> str:
    """Start a private server for all tests, and make this process use it.

    It is not released at the end: Prefect's own threads use it until this process has ended (and would start
    another one); then the kernel releases its lock, and it ends.
    """
    from flows.server import PrivateServer

    for name in [name for name in os.environ if name.startswith("PREFECT_")]:
        del os.environ[name]
    os.environ["PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS"] = "2"
    os.environ["PREFECT_WORKER_QUERY_SECONDS"] = "1"
    private = PrivateServer(tmp_path_factory.mktemp("prefect") / "home")
    private.configure()
    from prefect.context import refresh_global_settings_context

    refresh_global_settings_context()  # the collection of other tests may have imported Prefect before
    private.wait()
    return private.address


@pytest.fixture
def run_flow(server, project) -> Callable[..., SimpleNamespace]:
    """Run the flow in this process; return its state, its error and its id."""

    def run(*overrides: str) -> SimpleNamespace:
        from flows.pipeline import reca

        state = reca(list(overrides), return_state=True)
        error = None if state.is_completed() else state.result(raise_on_failure=False)
        return SimpleNamespace(state=state, error=error, id=state.state_details.flow_run_id)

    return run


@pytest.fixture
def tasks(server) -> Callable[..., dict]:
    """Return the task runs of a flow run by name, once the server has recorded the end of all."""

    def read(run_id, expected: int) -> dict:
        from prefect.client.orchestration import get_client
        from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

        with get_client(sync_client=True) as client:
            this_run = FlowRunFilter(id=FlowRunFilterId(any_=[run_id]))

            def ended():
                runs = client.read_task_runs(flow_run_filter=this_run)
                return len(runs) >= expected and all(run.state and run.state.is_final() for run in runs) and runs

            return {run.name: run for run in wait_for(ended, 120)}

    return read


@pytest.fixture
def events(project) -> Callable[[], list]:
    """Return the events of the stages so far."""

    def read() -> list[SimpleNamespace]:
        path = project / "events.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [SimpleNamespace(**json.loads(line)) for line in lines]

    return read


@pytest.fixture
def command(project) -> Iterator[Callable[..., subprocess.Popen]]:
    """Start `reca …` in the project; processes that still run at the test's end are killed."""
    started: list[subprocess.Popen] = []

    def start(*words: str, **environment: str | None) -> subprocess.Popen:
        variables = {key: value for key, value in {**os.environ, **environment}.items() if value is not None}
        process = subprocess.Popen(
            [sys.executable, "-m", "reca", *words],
            cwd=project,
            env=variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # A shell's background job ignores Ctrl-C and its children inherit that; the tested one must not.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def hanging(project) -> Callable[[str], list[int]]:
    """Wait until a stage hangs; return the ids of its process and of that process's child."""

    def pids(stage: str) -> list[int]:
        path = project / f"pids-{stage}"
        wait_for(lambda: path.exists() and len(path.read_text().split()) == 2, 240)
        return [int(word) for word in path.read_text().split()]

    return pids


@pytest.fixture
def until() -> Callable[..., object]:
    """Wait for a condition."""
    return wait_for


@pytest.fixture
def gone() -> Callable[..., None]:
    """Wait until processes have ended."""

    def check(pids: list[int], seconds: float = 60) -> None:
        wait_for(lambda: not any(psutil.pid_exists(pid) for pid in pids), seconds)

    return check


def wait_for(condition: Callable[[], object], seconds: float):
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"the condition did not hold within {seconds:g} s"
        time.sleep(0.1)
    return value
