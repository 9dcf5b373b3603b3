"""The flow ``reca``: compose, bring every stage up to date in DVC's order, register, publish the outcome."""

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import flow, get_run_logger, runtime
from prefect.states import Cancelled, Completed, State
from prefect.task_runners import ThreadPoolTaskRunner

from flows.artifacts import publish
from flows.display import Display, summarise
from flows.graph import read_graph
from flows.liveness import CancellationWatch, mark_dead_runs
from flows.run_context import RunContext, StageFailed, run_command
from flows.schedule import run_stages
from flows.supervisor import Processes, Stopped
from flows.tasks import run_register
from reca.config import Config, compose
from reca.runtime import workspace
from reca.runtime.system_metrics import FILE_VARIABLE, sample_to_csv

ISOLATED = "RECA_ISOLATED"
TRACKING = "MLFLOW_TRACKING_URI"
FLOW_RUN = "RECA_FLOW_RUN_ID"
"""The MLflow run of ``reca register`` is tagged with it."""
RUNNER: Any = ThreadPoolTaskRunner(max_workers=16)


@flow(name="reca", task_runner=RUNNER, persist_result=False)
def reca(overrides: list[str] | None = None) -> State[Any]:
    """Align, measure and register a model.

    Args:
        overrides: Changes to the configuration in Hydra's grammar: ``["train.max_steps=40", "data.num_images=256"]``.
    """
    with run_context(workspace.project_root(), list(overrides or [])) as context:
        with CancellationWatch(UUID(runtime.flow_run.id), context.processes.stop) as watch:
            try:
                _run(context)
            except (StageFailed, Stopped):
                if not watch.cancelled:
                    raise
        return Cancelled(message="cancelled; the next run continues") if watch.cancelled else Completed()


def _run(context: RunContext) -> None:
    context = _compose(context)
    stages = read_graph(context.root)
    context.display.plan([stage.name for stage in stages] + ["register"])
    run_stages(stages, context)
    run_register(context)
    if summary := summarise(context.root, context.state, context.config.evaluate.confidence):
        publish(summary, context.root / "outputs/report/figures/overview.png", context.name)


@contextmanager
def run_context(root: Path, overrides: list[str]) -> Iterator[RunContext]:
    """Lock the project for this run or, on a worker and with ``--isolated``, make a worktree for it.

    Raises:
        ConfigError: An override is wrong; no file was changed.
        UserError: Another run uses the project, or git or DVC fails.
    """
    config = compose(overrides)
    state = (root / config.paths.state).resolve()
    run_id, name = str(runtime.flow_run.id), str(runtime.flow_run.name)
    isolated = runtime.deployment.id is not None or bool(os.environ.get(ISOLATED))
    display, logger = Display.current, get_run_logger()

    def log(text: str) -> None:
        logger.info(text)
        display.log(text)

    with ExitStack() as stack:
        if not isolated:
            stack.enter_context(workspace.project_lock(state, name))
        stack.enter_context(workspace.run_lease(state, run_id))
        mark_dead_runs(state, log)
        if note := workspace.prepare_dvc(root):
            log(note)
        folder, environment = root, {"DVC_NO_ANALYTICS": "1"}
        if isolated:
            folder = stack.enter_context(workspace.isolated_worktree(root, state, run_id, log))
            environment[TRACKING] = os.environ.get(TRACKING, f"sqlite:///{root / 'mlruns/mlflow.db'}")
            overrides = [*overrides, f"paths.state={state}"]
        logs = state / "logs" / run_id
        environment |= {FILE_VARIABLE: str(logs / "system.csv"), FLOW_RUN: run_id}
        stack.enter_context(sample_to_csv(logs / "system.csv"))
        processes = Processes(environment)
        stack.callback(processes.stop)
        yield RunContext(folder, state, logs, name, overrides, config, processes, display)


def _compose(context: RunContext) -> RunContext:
    """Write the workspace's ``params.yaml`` by the workspace's own code, and put its images under DVC."""
    run_command("compose", [sys.executable, "-m", "reca", "compose", *context.overrides], context)
    return replace(context, config=Config.load(context.root / "params.yaml"))
