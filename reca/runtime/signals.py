"""The end of a stage's process: stop requests by signal, the parent's death, and the exit statuses."""

import ctypes
import os
import signal
import sys
from types import FrameType

GUARD = "RECA_GUARD_PID"
"""Environment variable with the id of the flow's process that waits for the stage (flows/guard.py)."""
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def end_with_parent() -> None:
    """Ask the kernel for SIGTERM when the parent dies, so that no orphan trains on (Linux only).

    Does nothing under ``nohup`` (SIGHUP ignored), with which the user asks for the opposite.
    """
    if sys.platform != "linux" or signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        return
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:  # it died before prctl, so the kernel will not send the signal
        os.kill(os.getpid(), signal.SIGTERM)


class Interrupted(SystemExit):
    """A signal has stopped the run after its last step was saved; the exit status is 128 + signal, as in a shell."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(128 + signal_number)


class StopRequest:
    """Records SIGTERM and SIGINT, so that the loop can end between two steps; a second SIGINT ends it at once.

    SIGUSR1 counts as SIGTERM, because multi-node launchers forward it. Use it in a ``with`` block in the main thread.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._before: dict[int, signal._HANDLER] = {}

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            self._before[number] = signal.signal(number, self._record)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _record(self, number: int, _frame: FrameType | None) -> None:
        if self.signal_number is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal_number = signal.SIGTERM if number == signal.SIGUSR1 else number
