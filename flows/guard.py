"""Runs one command so that nothing of it outlives whoever asked for it: ``python -m flows.guard … -- command``.

The guard is a small process of its own between the flow and the work. It ends the command and every process
that came of it (also those that left the process group or lost their parents) when

* it is told to (SIGTERM),
* its standard input closes: the flow holds the other end of that pipe, so this happens however the flow dies,
* nobody holds the file of ``--while-locked`` any more (the private Prefect server lives as long as its users),
* the command ends: what it left behind goes too.

First SIGTERM to everything, then, after ``--grace`` seconds, SIGKILL. What starts processes on several hosts, and what
comes of it here, gets SIGUSR1 first: srun and mpirun hand that on, while at SIGTERM srun kills what may be saving
(reca/runtime/launch.py). Only the standard library: it starts fast.
"""

import argparse
import contextlib
import ctypes
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
PARENT_ALONE_SECONDS = 3
RENDEZVOUS = b"RECA_RENDEZVOUS="
"""In the environment of what :mod:`reca.runtime.launch` starts for several hosts."""


def main() -> int:
    """Run the command; returns its exit status, 128 + n when a signal ended it."""
    parser = argparse.ArgumentParser(prog="flows.guard")
    parser.add_argument("--grace", type=float, default=20)
    parser.add_argument("--while-locked")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: stop.set())
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # orphans come to us, so that we find them

    def die_with_guard() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)  # for a guard that is itself killed with -9

    environment = {**os.environ, "RECA_GUARD_PID": str(os.getpid())}
    child = subprocess.Popen(
        options.command, stdin=subprocess.DEVNULL, env=environment, start_new_session=True, preexec_fn=die_with_guard
    )
    wait = _until_unlocked if options.while_locked else _until_input_closes
    threading.Thread(target=wait, args=(stop, options.while_locked), daemon=True).start()
    while child.poll() is None and not stop.is_set():
        stop.wait(0.05)
    end_all(child, options.grace)
    status = child.wait()
    return status if status >= 0 else 128 - status


def end_all(child: "subprocess.Popen[bytes]", grace: float) -> None:
    """End the child and everything below us: TERM, time to finish, KILL.

    The child (DVC, here) is asked last: it clears its own locks once its command has ended.
    """
    start = time.monotonic()
    asked: set[int] = set()
    while alive := _descendants(child):
        elapsed = time.monotonic() - start
        for pid in alive:
            if elapsed > grace:
                _send(pid, signal.SIGKILL)
            elif pid not in asked and (pid != child.pid or (len(alive) == 1 and elapsed > _patience(asked))):
                _send(pid, signal.SIGUSR1 if _on_several_hosts(pid) else signal.SIGTERM)
                asked.add(pid)
        time.sleep(0.05)


def _patience(asked: set[int]) -> float:
    """How long a child without children of its own may take to end by itself."""
    return PARENT_ALONE_SECONDS if asked else 0


def _descendants(child: "subprocess.Popen[bytes]") -> list[int]:
    """Reap what has ended; the processes below this one that have not."""
    child.poll()
    parents: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    state, parent = file.read().rsplit(b")", 1)[1].split()[:2]
            except OSError:
                continue
            if state == b"Z" and int(parent) == os.getpid() and int(name) != child.pid:
                os.waitpid(int(name), os.WNOHANG)
            elif state != b"Z":
                parents[int(name)] = int(parent)
    found, frontier = [], [os.getpid()]
    while frontier:
        frontier = [pid for pid, parent in parents.items() if parent in frontier]
        found += frontier
    return found


def _on_several_hosts(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return any(variable.startswith(RENDEZVOUS) for variable in file.read().split(b"\0"))
    except OSError:  # it has ended
        return False


def _send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _until_input_closes(stop: threading.Event, _: None) -> None:
    while os.read(0, 1):
        pass
    stop.set()


def _until_unlocked(stop: threading.Event, path: str) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    fcntl.flock(descriptor, fcntl.LOCK_EX)  # users hold it shared; held from here on until the command is gone
    stop.set()


if __name__ == "__main__":
    sys.exit(main())
