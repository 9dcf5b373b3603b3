"""``reca run``: the flow in this process, displayed on the terminal, with a private Prefect server if there is none."""

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from flows.display import Display, print_summary, summarise
from flows.gpus import create_limit
from flows.server import PrivateServer
from reca.config import compose
from reca.runtime import workspace
from reca.runtime.files import write_json

SETTLE_SECONDS, INTERRUPTED_SECONDS = 20.0, 2.0
DURATIONS = "durations.json"
_CONSOLE = {
    # The display reports progress; Prefect's own lines, with tracebacks of user errors, go to its pages only.
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
}


def run(overrides: list[str], isolated: bool) -> int:
    """Run the flow and print its outcome.

    Args:
        overrides: As on the command line.
        isolated: Run the last commit in a worktree, independent of other work in the project.

    Returns:
        The exit status: 0, or 1 when a stage failed.

    Raises:
        ConfigError: An override is wrong.
        UserError: The user has to fix something; the message says what.
    """
    root = workspace.project_root()
    config = compose(overrides)
    state = (root / config.paths.state).resolve()
    signal.signal(signal.SIGTERM, _interrupt)
    os.environ.pop("RECA_ISOLATED", None)
    if isolated:
        os.environ["RECA_ISOLATED"] = "1"
    lock = nullcontext() if isolated else workspace.project_lock(state, " ".join(["reca run", *overrides]))
    with lock, prefect_api(state / "prefect") as wait:
        for name, value in _CONSOLE.items():
            os.environ.setdefault(name, value)
        from flows.pipeline import reca  # Prefect reads its settings when it is imported

        if wait() and config.hardware.device != "cpu":
            create_limit()  # of the private server; on a shared one, `reca deploy` sets it for all hosts
        with Display(expected=_durations(state)) as display:
            Display.current = display
            try:
                outcome = reca(overrides, return_state=True)
            except KeyboardInterrupt:
                _settle(0, INTERRUPTED_SECONDS)
                raise
            _settle(len(display.rows), SETTLE_SECONDS)
        write_json(state / DURATIONS, display.seconds())
        if outcome.is_cancelled():
            raise KeyboardInterrupt
        if not outcome.is_completed():
            return _print_failure(outcome)
    if not isolated and (summary := summarise(root, state, config.evaluate.confidence)):
        print_summary(summary, Display().console)
    return 0


@contextmanager
def prefect_api(home: Path, port: int | None = None) -> Iterator[Any]:
    """Select Prefect's API for this process: the one in the environment, or the project's private server.

    Args:
        home: The private server's home.
        port: Port of a newly started server.

    Yields:
        A function that waits until the API answers and returns whether the server is private.
    """
    if os.environ.get("PREFECT_API_URL"):
        yield lambda: False
        return
    server = PrivateServer(home, port)
    server.configure()

    def wait() -> bool:
        server.wait()
        return True

    try:
        yield wait
    finally:
        server.release()


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _settle(expected: int, seconds: float) -> None:
    """Wait until the server has recorded every task of the newest run: their states travel as events."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
    from prefect.client.schemas.sorting import FlowRunSort
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    EventsWorker.drain_all(timeout=seconds)
    APILogWorker.drain_all(timeout=seconds)
    deadline = time.monotonic() + seconds
    with get_client(sync_client=True) as client:
        newest = client.read_flow_runs(sort=FlowRunSort.START_TIME_DESC, limit=1)
        newest_run = FlowRunFilter(id=FlowRunFilterId(any_=[run.id for run in newest]))
        while newest and time.monotonic() < deadline:
            tasks = client.read_task_runs(flow_run_filter=newest_run)
            if len(tasks) >= expected and all(task.state and task.state.is_final() for task in tasks):
                return
            time.sleep(0.2)


def _print_failure(outcome: Any) -> int:
    error = outcome.result(raise_on_failure=False)
    print(f"reca run: {error if isinstance(error, BaseException) else outcome.message}", file=sys.stderr)
    return 1 if getattr(error, "retryable", True) else 2


def _durations(state: Path) -> dict[str, float]:
    try:
        return dict(json.loads((state / DURATIONS).read_text()))
    except (OSError, ValueError):
        return {}
