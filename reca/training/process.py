"""The training process: its device and threads, and how it ends when it is told to, or left alone."""

import ctypes
import os
import signal
import sys
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def prepare(device: str, threads: int) -> "torch.device":
    """Choose the device, limit the threads, and make the CPU deterministic.

    Args:
        device: ``cpu``, ``cuda``, or ``auto`` for CUDA where there is a GPU.
        threads: CPU threads.
    """
    import torch

    torch.set_num_threads(threads)
    chosen = torch.device("cuda" if device == "auto" and torch.cuda.is_available() else device.replace("auto", "cpu"))
    if chosen.type == "cpu":
        # On CUDA deterministic kernels are slower and some are missing: there, runs are alike but not bit-equal.
        torch.use_deterministic_algorithms(True)
        # Filling fresh memory costs time, and we read none that was not written.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return chosen


def end_with_parent() -> None:
    """Ask the kernel for SIGTERM when the parent dies, so that no orphan trains on (Linux; elsewhere: nothing).

    Under ``nohup`` (SIGHUP ignored) the user has asked for the opposite, and gets it.
    """
    if sys.platform != "linux" or signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        return
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:  # it died in between, and the kernel will not say so any more
        os.kill(os.getpid(), signal.SIGTERM)


class Interrupted(SystemExit):
    """The run was told to end and has saved its last step; the exit status is 128 + signal, as in a shell."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(128 + signal_number)


class StopRequest:
    """Notes SIGTERM and SIGINT, so that the loop can end between two steps; a second SIGINT ends it at once.

    Use it in a ``with`` block, in the main thread.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._before: dict[int, signal._HANDLER] = {}

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.signal_number is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal_number = number
