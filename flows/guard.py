"""Run one command so that none of its processes outlives the caller: ``python -m flows.guard … -- command``.

The guard is a small process between the flow and the work. It ends the command and all its descendants (also those
that left the process group or lost their parents) when

* it receives SIGTERM,
* its standard input closes: the flow holds the other end of that pipe, so this happens however the flow ends,
* no process holds the file of ``--while-locked`` any more (the private Prefect server lives as long as its users),
* the command ends: processes that it left behind are ended too.

First SIGTERM to every process, then, after ``--grace`` seconds, SIGKILL. Processes that launch on several hosts, and
their children here, get SIGUSR1 first: srun and mpirun forward it, while at SIGTERM srun kills a process that may be
saving (reca/runtime/launch.py). It imports psutil and the standard library only, so it starts fast.
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

import psutil  # type: ignore[import-untyped]

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
PARENT_EXIT_SECONDS = 3
"""Time for the command to exit by itself after its last child."""
RENDEZVOUS_VARIABLE = "RECA_RENDEZVOUS"
"""Environment variable of processes that :mod:`reca.runtime.launch` starts for several hosts."""


def main() -> int:
    """Run the command; return its exit status, 128 + n when a signal ended it."""
    parser = argparse.ArgumentParser(prog="flows.guard")
    parser.add_argument("--grace", type=float, default=20)
    parser.add_argument("--while-locked")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: stop.set())
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # orphans become children of the guard, so that it finds them

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
    """End all descendants: SIGTERM, time to finish, SIGKILL.

    The child (DVC, here) gets its signal last: it removes its own locks once its command has ended.
    """
    start = time.monotonic()
    signalled: set[int] = set()
    while alive := _descendants(child):
        elapsed = time.monotonic() - start
        exit_seconds = PARENT_EXIT_SECONDS if signalled else 0
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                if elapsed > grace:
                    process.kill()
                elif process.pid not in signalled and (
                    process.pid != child.pid or (len(alive) == 1 and elapsed > exit_seconds)
                ):
                    process.send_signal(signal.SIGUSR1 if _spans_hosts(process) else signal.SIGTERM)
                    signalled.add(process.pid)
        time.sleep(0.05)


def _descendants(child: "subprocess.Popen[bytes]") -> list[psutil.Process]:
    """Reap ended orphans; return the descendants that are alive."""
    child.poll()
    alive = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                alive.append(process)
            elif process.ppid() == os.getpid() and process.pid != child.pid:
                os.waitpid(process.pid, os.WNOHANG)
    return alive


def _spans_hosts(process: psutil.Process) -> bool:
    try:
        return RENDEZVOUS_VARIABLE in process.environ()
    except (psutil.Error, OSError):  # it has ended, or belongs to another user
        return False


def _until_input_closes(stop: threading.Event, _: None) -> None:
    while os.read(0, 1):
        pass
    stop.set()


def _until_unlocked(stop: threading.Event, path: str) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    fcntl.flock(descriptor, fcntl.LOCK_EX)  # users hold it shared; the guard keeps it until the command has ended
    stop.set()


if __name__ == "__main__":
    sys.exit(main())
