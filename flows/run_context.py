"""The context of a flow run, and commands in it: logged, followed, ended with the run."""

import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from prefect import get_run_logger

from flows.artifacts import StageProgress
from flows.display import Display
from flows.gpus import visible_devices
from flows.supervisor import Processes
from reca.config import Config
from reca.runtime import dvc_lock
from reca.runtime.errors import UserError
from reca.runtime.files import write_text

PROGRESS = re.compile(r"PROGRESS (\d+)/(\d+) (\S+) ?(.*)")
EXIT_STATUS = re.compile(r"exited with (-?\d+)$")
USER_ERROR_STATUS = 2
LAST_LINES = 12


class StageFailed(UserError):
    """A stage failed; the message holds its last lines and names its log."""

    def __init__(self, message: str, *, retryable: bool) -> None:
        super().__init__(message)
        self.retryable = retryable


@dataclass(frozen=True)
class RunContext:
    """Folders, configuration and processes of a flow run."""

    root: Path
    """The project, or a worktree."""
    state: Path
    logs: Path
    name: str
    """Name of the flow run."""
    overrides: list[str]
    config: Config
    processes: Processes
    display: Display

    @property
    def gpus(self) -> int:
        """Devices that a stage with ``resource: gpu`` needs."""
        hardware = self.config.hardware
        without = hardware.device == "cpu" or (hardware.device == "auto" and not visible_devices())
        return 0 if without else hardware.processes

    def restore_parameters(self) -> bool:
        """Write this run's ``params.yaml`` again; return whether it had been changed."""
        return write_text(self.root / "params.yaml", self.config.to_yaml())

    def parameter_differences(self, stage: str) -> list[str]:
        """Return how this run's parameters differ from those that a stage's result was made with."""
        return dvc_lock.parameter_differences(self.root, stage, self.config.to_dict())


def run_command(
    name: str,
    command: Sequence[str],
    context: RunContext,
    environment: Mapping[str, str] | None = None,
    hold: Sequence[int] = (),
) -> list[str]:
    """Run a command for the current task; its lines go to Prefect, its progress to the display.

    Args:
        name: Stage name, used for the log file and the display.
        command: Program and arguments.
        context: The run.
        environment: Variables in addition to those of the run.
        hold: Descriptors of locks that are held until the command's last process has ended.

    Returns:
        The last lines of its output.

    Raises:
        StageFailed: The exit status is not 0.
    """
    log, logger, last = context.logs / f"{name}.log", get_run_logger(), deque[str](maxlen=LAST_LINES)
    progress = StageProgress(name)
    with context.processes.start(command, context.root, log, environment, hold) as process:
        for line in process.lines():
            _take(line, name, context.display, progress, logger.info, last)
        status = process.wait()
    if status != 0:
        raise _failure(name, status, list(last), log, context.processes.stopped)
    progress.finish()
    return list(last)


def _take(
    line: str, name: str, display: Display, progress: StageProgress, log: Callable[[str], None], last: "deque[str]"
) -> None:
    if match := PROGRESS.fullmatch(line.strip()):
        done, total, unit, text = int(match[1]), int(match[2]), match[3], match[4]
        display.progress(name, done, total, unit, text)
        progress.update(done, total, f"{done}/{total} {unit} {text}")
    elif line.strip():
        log(line.rstrip())
        last.append(line.rstrip())


def _failure(name: str, status: int, last: list[str], log: Path, stopped: bool) -> StageFailed:
    inner = [int(match[1]) for line in last if (match := EXIT_STATUS.search(line))]  # DVC's own status is always 255
    status = inner[-1] if inner else status
    text = "\n".join(f"  | {line}" for line in last)
    message = f"{name} failed (exit status {status}):\n{text}\n  full log: {log}"
    return StageFailed(message, retryable=status != USER_ERROR_STATUS and not stopped)
