"""One command, several processes: one for each device of this machine."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import IO

from reca.training.process import StopRequest, end_with_parent

GRACE_SECONDS = 30.0
"""For the others when one process has failed: the first may be writing a checkpoint."""
POLL_SECONDS = 0.1
LAST_WORDS = 10_000
"""Characters of a failed process's stderr that are shown."""


def launched() -> bool:
    """Whether this process is already one of several."""
    return "RANK" in os.environ


def launch(command: Sequence[str], processes: int) -> int:
    """Start a command so many times, each knowing its rank, and wait for all of them.

    Not accelerate's launcher: on the CPU it starts one process, however many it is asked for, and it makes 1 of every
    exit status, while ours tell a mistake of the user from an interruption.

    Returns:
        0, or the exit status of the process that failed first.
    """
    shared = {**os.environ, "WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    with StopRequest() as stop, ExitStack() as files:
        end_with_parent()
        # Only the first one's stderr is seen: what all of them find wrong is to be read once.
        errors = [None, *(files.enter_context(tempfile.TemporaryFile()) for _ in range(1, processes))]
        ranks = list[subprocess.Popen[bytes]]()
        try:
            for rank, error in enumerate(errors):
                environment = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
                # close_fds=False: the locks on devices that the flow has handed on are held by every process.
                ranks.append(subprocess.Popen(command, env=environment, stderr=error, close_fds=False))
            first = _wait(ranks, stop)
        finally:
            for process in ranks:
                process.kill()  # nothing where it has ended
                process.wait()
        if first is None:
            return 0
        if ranks[first].returncode != ranks[0].returncode and (error := errors[first]) is not None:
            print(f"process {first} of {processes} failed:\n{_end_of(error)}", file=sys.stderr)
        status = ranks[first].returncode
        return status if status > 0 else 128 - status


def _wait(ranks: Sequence[subprocess.Popen[bytes]], stop: StopRequest) -> int | None:
    """Until all have ended, or one has failed and the others had time to; returns the first that failed."""
    first, until, passed_on = None, float("inf"), False
    while any(process.poll() is None for process in ranks) and time.monotonic() < until:
        if stop.signal_number is not None and not passed_on:
            for process in ranks:
                process.terminate()  # never SIGINT: a terminal has sent it to them already, and a second one is final
            passed_on = True
        first = _failed(ranks) if first is None else first
        if first is not None and until == float("inf"):
            until = time.monotonic() + GRACE_SECONDS
        time.sleep(POLL_SECONDS)
    return _failed(ranks) if first is None else first


def _failed(ranks: Sequence[subprocess.Popen[bytes]]) -> int | None:
    return next((rank for rank, process in enumerate(ranks) if process.poll()), None)


def _end_of(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")[-LAST_WORDS:]


def free_port() -> int:
    """A port of this machine that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
