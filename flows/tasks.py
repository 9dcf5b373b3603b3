"""Prefect tasks: one per stage of ``dvc.yaml``, brought up to date by DVC in a separate process."""

import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from prefect import get_run_logger, runtime, task
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed, State

from flows.gpus import reserve_devices
from flows.graph import Stage
from flows.run_context import RunContext, StageFailed, run_command
from reca.runtime.errors import UserError

DVC = (sys.executable, "-m", "dvc")
RETRY_DELAYS = (5.0, 60.0)
"""Seconds before the second and the third attempt; Prefect's own delay cannot be interrupted by a signal."""


def should_retry(_task: Any, _run: Any, state: State[Any]) -> bool:
    """Return whether another attempt may help; not if the user has to fix something first."""
    error = state.result(raise_on_failure=False)
    return not (isinstance(error, UserError) and not getattr(error, "retryable", False))


@task(
    task_run_name="{stage.name}",
    retries=len(RETRY_DELAYS),
    retry_condition_fn=should_retry,
    cache_policy=NO_CACHE,  # DVC decides which stages are stale; a second cache could disagree
    persist_result=False,
)
def run_stage(stage: Stage, context: RunContext, unchanged: bool) -> State[Any]:
    """Bring one stage up to date; with ``unchanged``, only record that it is."""
    if unchanged:
        context.display.ended(stage.name, "unchanged")
        return Completed(name="Unchanged", message="no dependency of this stage has changed")
    began = time.monotonic()
    outcome = _displayed(stage.name, context, lambda: _reproduce(stage, context))
    return Completed(name=outcome.capitalize(), message=f"{outcome} in {time.monotonic() - began:.1f} s")


@task(
    task_run_name="register",
    retries=len(RETRY_DELAYS),
    retry_condition_fn=should_retry,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def run_register(context: RunContext) -> None:
    """Register the model: not a DVC stage, because it changes the registry; idempotent."""

    def register() -> str:
        run_command("register", [sys.executable, "-m", "reca", "register"], context)
        return "done"

    _displayed("register", context, register)


def _displayed(name: str, context: RunContext, work: Callable[[], str]) -> str:
    """Do the work of a stage, which returns its outcome; the display shows its start and end."""
    _pause_before_retry(context)
    context.display.started(name)
    outcome = "failed"
    try:
        outcome = work()
    finally:
        context.display.ended(name, "stopped" if outcome == "failed" and context.processes.stopped else outcome)
    return outcome


def _pause_before_retry(context: RunContext) -> None:
    attempt = int(runtime.task_run.run_count or 1)
    if attempt > 1:
        seconds = RETRY_DELAYS[min(attempt - 2, len(RETRY_DELAYS) - 1)]
        get_run_logger().info("attempt %d, in %g s; it resumes from the files of the last one", attempt, seconds)
        context.processes.pause(seconds)


def _reproduce(stage: Stage, context: RunContext) -> str:
    """Run ``dvc repro`` for the stage; by force, if its result was made with other parameters."""
    command = [*DVC, "--wait-for-lock", "repro", "--single-item", stage.name]
    log = get_run_logger()
    with ExitStack() as stack:
        environment: dict[str, str] = {}
        hold: list[int] = []
        if stage.uses_gpu(context.config.evaluate) and context.gpus:
            devices, hold = stack.enter_context(reserve_devices(context.gpus, log.info))
            environment = {"CUDA_VISIBLE_DEVICES": devices}
        false_record = not stage.stale and bool(context.parameter_differences(stage.name))
        for force in (false_record, True):
            if context.restore_parameters():
                log.warning("params.yaml was changed during the run; this run's parameters are restored")
            lines = run_command(stage.name, [*command, "--force"] if force else command, context, environment, hold)
            differences = context.parameter_differences(stage.name)
            if not differences:
                return _outcome(lines)
            log.warning("%s was made with other parameters (%s); it runs again", stage.name, "; ".join(differences))
    raise StageFailed(
        f"{stage.name} does not agree with this run's parameters: {'; '.join(differences)}. "
        "Is params.yaml being edited? Leave it alone and run `reca run` again",
        retryable=False,
    )


def _outcome(lines: list[str]) -> str:
    """Return the outcome of ``dvc repro``, from its output."""
    text = "\n".join(lines)
    if "didn't change, skipping" in text:
        return "unchanged"
    return "restored" if "is cached - skipping run" in text else "done"
