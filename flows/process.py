"""Commands under a guard (flows/guard.py), their output in a file that is followed while it grows."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

GRACE_SECONDS = 20.0
POLL_SECONDS = 0.2


class Guarded:
    """A running command; as a context manager, it and everything that came of it have ended at the block's end.

    The output goes to ``log`` (appended), not through a pipe: the last words of a process that is being ended
    are not lost, and a flow that is killed breaks no pipe under a stage that is saving its work.

    Args:
        command: Program and arguments.
        folder: Working directory.
        log: File that takes stdout and stderr.
        environment: Variables on top of this process's own.
        hold: File descriptors that stay open until the last process has ended: locks on devices.
        grace_seconds: Time between SIGTERM and SIGKILL.
    """

    running: "set[Guarded]" = set()  # noqa: RUF012 - one set for the process, on purpose

    def __init__(
        self,
        command: Sequence[str],
        folder: Path,
        log: Path,
        *,
        environment: Mapping[str, str] | None = None,
        hold: Sequence[int] = (),
        grace_seconds: float = GRACE_SECONDS,
    ) -> None:
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        guard = [sys.executable, "-I", str(Path(__file__).with_name("guard.py")), "--grace", str(grace_seconds), "--"]
        with log.open("ab") as output:
            self._offset = output.tell()
            self._process = subprocess.Popen(
                [*guard, *command],
                cwd=folder,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **_path_of_this_python(), **(environment or {})},
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=tuple(hold),
                start_new_session=True,  # Ctrl-C reaches the flow alone, which then ends the stages in order
            )
        Guarded.running.add(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

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
        status = self._process.wait()
        Guarded.running.discard(self)
        return status

    def ask_to_stop(self) -> None:
        """Let the guard begin to end the command; returns at once."""
        if self._process.stdin and not self._process.stdin.closed:
            self._process.stdin.close()

    def stop(self) -> int:
        """End the command and everything below it, if it still runs."""
        self.ask_to_stop()
        return self.wait()

    def _ended_within(self, seconds: float) -> bool:
        try:
            self._process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return False
        return True


def stop_all() -> None:
    """End every guarded command of this process, all at the same time."""
    running = list(Guarded.running)
    for command in running:
        command.ask_to_stop()
    for command in running:
        command.wait()


def _path_of_this_python() -> dict[str, str]:
    """``python`` and ``reca`` in dvc.yaml mean the ones that run this flow, activated or not."""
    return {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])}
