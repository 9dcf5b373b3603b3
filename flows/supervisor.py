"""Commands under a guard (flows/guard.py), their output in a file that is followed while it grows."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

from reca.runtime.errors import UserError

GUARD = (sys.executable, "-I", str(Path(__file__).with_name("guard.py")))
GRACE_SECONDS = 20.0
POLL_SECONDS = 0.2


class Stopped(UserError):
    """The run is being ended: nothing may start any more."""

    retryable = False


class Processes:
    """The commands of one run; once stopped, it starts no more (a task that is retried would)."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        self.environment = dict(environment or {})
        self._stop = threading.Event()
        self._running: set[Guarded] = set()
        self._lock = threading.Lock()

    def start(
        self,
        command: Sequence[str],
        folder: Path,
        log: Path,
        environment: Mapping[str, str] | None = None,
        hold: Sequence[int] = (),
    ) -> "Guarded":
        """Start a command.

        Args:
            command: Program and arguments.
            folder: Working directory.
            log: File that takes stdout and stderr.
            environment: Variables on top of those of the run.
            hold: File descriptors that stay open until the last process has ended: locks on devices.

        Raises:
            Stopped: The run is being ended.
        """
        with self._lock:
            if self.stopped:
                raise Stopped("the run is being ended")
            process = Guarded(command, folder, log, {**self.environment, **(environment or {})}, hold)
            self._running.add(process)
            return process

    @property
    def stopped(self) -> bool:
        """Whether the run is being ended."""
        return self._stop.is_set()

    def pause(self, seconds: float) -> None:
        """Wait, but no longer than the run lasts."""
        self._stop.wait(seconds)

    def stop(self) -> None:
        """End everything, all at the same time, and start nothing more."""
        with self._lock:
            self._stop.set()
            running = list(self._running)
        for process in running:
            process.ask_to_stop()
        for process in running:
            process.wait()


class Guarded:
    """A running command; as a context manager, it and everything that came of it have ended at the block's end.

    The output goes to a file, not through a pipe: the last words of a process that is being ended are not lost,
    and a flow that is killed breaks no pipe under a stage that is saving its work.
    """

    def __init__(
        self, command: Sequence[str], folder: Path, log: Path, environment: Mapping[str, str], hold: Sequence[int]
    ) -> None:
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            self._offset = output.tell()
            self._process = subprocess.Popen(
                [*GUARD, "--grace", str(GRACE_SECONDS), "--", *command],
                cwd=folder,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **_path_of_this_python(), **environment},
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=tuple(hold),
                start_new_session=True,  # Ctrl-C reaches the flow alone, which then ends the stages in order
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.ask_to_stop()
        self.wait()

    def lines(self) -> Iterator[str]:
        """New lines as they come, until the command has ended."""
        with self.log.open("rb") as file:
            file.seek(self._offset)
            rest, ended = b"", False
            while not ended:
                ended = self._ended_within(POLL_SECONDS)
                *whole, rest = (rest + file.read().replace(b"\r", b"\n")).split(b"\n")
                yield from (line.decode(errors="replace") for line in whole)
            if rest:
                yield rest.decode(errors="replace")

    def wait(self) -> int:
        """The command's exit status, once it and its children have ended."""
        return self._process.wait()

    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def ask_to_stop(self) -> None:
        """Let the guard begin to end the command; returns at once."""
        if self._process.stdin and not self._process.stdin.closed:
            self._process.stdin.close()

    def _ended_within(self, seconds: float) -> bool:
        try:
            self._process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return False
        return True


def _path_of_this_python() -> dict[str, str]:
    """``python`` in dvc.yaml means the one that runs this flow, activated or not."""
    return {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])}
