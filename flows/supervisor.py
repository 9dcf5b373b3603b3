"""Commands under a guard (flows/guard.py), with their output in a file that is followed as it grows."""

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
    """The run is being ended, so no command may start."""

    retryable = False


class Processes:
    """The commands of a run; after :meth:`stop` none is started, even by a task that is retried."""

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
            log: File for stdout and stderr.
            environment: Variables on top of those of the run.
            hold: File descriptors, such as device locks, that stay open until the last process has ended.

        Raises:
            Stopped: :meth:`stop` was called.
        """
        with self._lock:
            if self.stopped:
                raise Stopped("the run is being ended")
            process = Guarded(command, folder, log, {**self.environment, **(environment or {})}, hold)
            self._running.add(process)
            return process

    @property
    def stopped(self) -> bool:
        """``True`` after :meth:`stop` was called."""
        return self._stop.is_set()

    def pause(self, seconds: float) -> None:
        """Wait, at most until :meth:`stop` is called."""
        self._stop.wait(seconds)

    def stop(self) -> None:
        """End all commands at the same time; no command can be started afterwards."""
        with self._lock:
            self._stop.set()
            running = list(self._running)
        for process in running:
            process.request_stop()
        for process in running:
            process.wait()


class Guarded:
    """A running command; at the end of its ``with`` block, it and all its descendants have ended.

    The output goes to a file, not through a pipe: the last lines of a process that is being ended are not lost,
    and a killed flow breaks no pipe under a stage that is saving its work.
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
        self.request_stop()
        self.wait()

    def lines(self) -> Iterator[str]:
        """Yield new lines as they are written, until the command has ended."""
        with self.log.open("rb") as file:
            file.seek(self._offset)
            rest, ended = b"", False
            while not ended:
                ended = self._ended_within(POLL_SECONDS)
                *complete, rest = (rest + file.read().replace(b"\r", b"\n")).split(b"\n")
                yield from (line.decode(errors="replace") for line in complete)
            if rest:
                yield rest.decode(errors="replace")

    def wait(self) -> int:
        """Wait until the command and its descendants have ended; return the exit status."""
        return self._process.wait()

    def running(self) -> bool:
        """Return whether the command is still running."""
        return self._process.poll() is None

    def request_stop(self) -> None:
        """Make the guard end the command; return at once."""
        if self._process.stdin and not self._process.stdin.closed:
            self._process.stdin.close()

    def _ended_within(self, seconds: float) -> bool:
        try:
            self._process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return False
        return True


def _path_of_this_python() -> dict[str, str]:
    """Return a PATH on which ``python`` (in dvc.yaml) is this interpreter."""
    return {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])}
