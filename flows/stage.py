"""One Prefect task = one stage of ``dvc.yaml``, brought up to date by DVC in a process of its own."""

import re
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed, State

from flows.artifacts import StageProgress
from flows.display import Display
from flows.gpus import devices
from flows.graph import Stage
from flows.lineage import disagreements
from flows.process import Processes
from reca.errors import UserError

DVC = (sys.executable, "-m", "dvc")
PROGRESS = re.compile(r"PROGRESS (\d+)/(\d+) (\S+) ?(.*)")
EXIT_STATUS = re.compile(r"exited with (-?\d+)$")
USERS_MISTAKE = 2
LAST_LINES = 12
RETRIES = 2
RETRY_SECONDS = (5.0, 60.0)


class StageFailed(UserError):
    """A stage ended badly; the message holds its last lines and names its log."""

    def __init__(self, message: str, *, again: bool) -> None:
        super().__init__(message)
        self.again = again
        """Whether another attempt may help."""


@dataclass(frozen=True)
class Workplace:
    """Where and for what a flow run works."""

    root: Path
    state: Path
    logs: Path
    name: str
    """The flow run's."""
    config: dict[str, Any]
    """The composed configuration, as plain containers."""
    processes: Processes
    display: Display

    @property
    def gpus(self) -> int:
        """Devices that a stage with ``resource: gpu`` needs."""
        return 0 if self.config["hardware"]["device"] == "cpu" else self.config["hardware"]["processes"]


def worth_another_attempt(_task: Any, _run: Any, state: State[Any]) -> bool:
    """Retry a stage unless the user has to mend something first."""
    error = state.result(raise_on_failure=False)
    return not (isinstance(error, UserError) and not getattr(error, "again", False))


@task(
    task_run_name="{stage.name}",
    retries=RETRIES,
    retry_delay_seconds=list(RETRY_SECONDS),
    retry_jitter_factor=0.2,
    retry_condition_fn=worth_another_attempt,
    cache_policy=NO_CACHE,  # DVC decides what is stale; two caches are two truths
    persist_result=False,
)
def run_stage(stage: Stage, workplace: Workplace, unchanged: bool) -> State[Any]:
    """Bring one stage up to date; with ``unchanged``, only put down that there was nothing to do."""
    display = workplace.display
    if unchanged:
        display.ended(stage.name, "unchanged")
        return Completed(name="Unchanged", message="nothing that this stage depends on has changed")
    display.started(stage.name)
    began = time.monotonic()
    try:
        outcome = _reproduce(stage, workplace)
    except BaseException as error:
        display.ended(stage.name, "failed" if isinstance(error, Exception) else "stopped")
        raise
    display.ended(stage.name, outcome)
    return Completed(name=outcome.capitalize(), message=f"{outcome} in {time.monotonic() - began:.1f} s")


@task(
    task_run_name="register",
    retries=1,
    retry_delay_seconds=5,
    retry_condition_fn=worth_another_attempt,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def run_register(workplace: Workplace) -> None:
    """Hand the model to the registry: not a DVC stage, since it acts on the world outside; idempotent."""
    workplace.display.started("register")
    try:
        run_command("register", [sys.executable, "-m", "reca", "register"], workplace)
    except BaseException:
        workplace.display.ended("register", "failed")
        raise
    workplace.display.ended("register", "done")


def _reproduce(stage: Stage, workplace: Workplace) -> str:
    """``dvc repro`` of one stage, and again with force if its record and the run disagree on parameters."""
    command = [*DVC, "--wait-for-lock", "repro", "--single-item", stage.name]
    with ExitStack() as stack:
        environment, hold = {}, []
        if stage.uses_gpu and workplace.gpus:
            chosen, hold = stack.enter_context(devices(workplace.gpus, get_run_logger().info))
            environment = {"CUDA_VISIBLE_DEVICES": chosen}
        force = bool(disagreements(workplace.root, stage.name, workplace.config)) and not stage.stale
        for forced in (["--force"] if force else [], ["--force"]):
            lines = run_command(stage.name, command + forced, workplace, environment=environment, hold=hold)
            differences = disagreements(workplace.root, stage.name, workplace.config)
            if not differences:
                return _outcome(lines)
            get_run_logger().warning("made with other parameters, making it again: %s", "; ".join(differences))
    raise StageFailed(
        f"{stage.name} does not agree with this run's parameters: {'; '.join(differences)}; "
        "was params.yaml edited meanwhile? Run `reca run` again and leave it alone",
        again=False,
    )


def run_command(
    name: str,
    command: Sequence[str],
    workplace: Workplace,
    *,
    environment: dict[str, str] | None = None,
    hold: Any = (),
) -> list[str]:
    """Run a command for the task at hand; its lines go to Prefect, its progress to the display.

    Returns:
        The last lines.

    Raises:
        StageFailed: It ended with another status than 0.
    """
    log, logger, last = workplace.logs / f"{name}.log", get_run_logger(), deque[str](maxlen=LAST_LINES)
    progress = StageProgress(name)
    with workplace.processes.start(command, workplace.root, log, environment, hold) as process:
        for line in process.lines():
            _take(line, name, workplace.display, progress, logger.info, last)
        status = process.wait()
    if status != 0:
        raise _failure(name, status, list(last), log, workplace.processes.stopped)
    progress.finish()
    return list(last)


def _take(
    line: str, name: str, display: Display, progress: StageProgress, log: Callable[[str], None], last: "deque[str]"
) -> None:
    if found := PROGRESS.fullmatch(line.strip()):
        done, total, unit, text = int(found[1]), int(found[2]), found[3], found[4]
        display.progress(name, done, total, unit, text)
        progress.update(done, total, f"{done}/{total} {unit} {text}")
    elif line.strip():
        log(line.rstrip())
        last.append(line.rstrip())


def _failure(name: str, status: int, last: list[str], log: Path, stopped: bool) -> StageFailed:
    inner = [int(found[1]) for line in last if (found := EXIT_STATUS.search(line))]  # DVC's own status is always 255
    status = inner[-1] if inner else status
    text = "\n".join(f"  | {line}" for line in last)
    message = f"{name} failed (exit status {status}):\n{text}\n  the whole log: {log}"
    return StageFailed(message, again=status != USERS_MISTAKE and not stopped)


def _outcome(lines: list[str]) -> str:
    """What DVC did, from its own words."""
    text = "\n".join(lines)
    if "didn't change, skipping" in text:
        return "unchanged"
    return "restored" if "is cached - skipping run" in text else "done"
