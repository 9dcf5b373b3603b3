"""The state folder: who may write to it, and what a full or read-only disk means in words."""

import errno
import fcntl
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from reca.runtime.errors import UserError

LOCK_WAIT_SECONDS = 60.0
"""A trainer that was told to end needs a while to save; whoever comes after it waits for so long."""

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
CLOSED = {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR}
# safetensors and torch's zip writer do not hand on the operating system's error, only its words.
OS_ERROR = re.compile(r"os error (\d+)|\[Errno (\d+)\]")


@contextmanager
def friendly_io_errors(folder: Path, what: str) -> Iterator[None]:
    """Turn "no space", "read-only" and the like into a message that names the folder and the way out.

    Raises:
        UserError: The disk is full, a quota or file-size limit is reached, or the folder may not be written.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        number = _errno(error)
        if number in FULL:
            raise UserError(
                f"cannot write {what} to {folder}: {os.strerror(number)}. Nothing that was saved before is lost: "
                "free some space (older folders beside it may go), or set paths.state to another disk, and run again"
            ) from error
        if number in CLOSED:
            raise UserError(
                f"cannot write {what} to {folder}: {os.strerror(number)}. "
                "Make it a folder that can be written, or set paths.state to another one, and run again"
            ) from error
        raise


def _errno(error: BaseException | None) -> int | None:
    """The operating system's error number, wherever in the chain of exceptions it hides."""
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            return error.errno
        if found := OS_ERROR.search(str(error)):
            return int(found[1] or found[2])
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def file_lock(path: Path, what: str, wait_seconds: float = LOCK_WAIT_SECONDS) -> Iterator[None]:
    """Hold a lock file; the kernel frees it when the process ends, however it ends.

    Raises:
        UserError: Another process still holds it after ``wait_seconds``; the message says which.
    """
    with friendly_io_errors(path.parent, "a lock"):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    with file:
        _acquire(file, path, what, wait_seconds)
        file.seek(0)
        file.truncate()
        file.write(f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S %z')}")
        file.flush()
        yield


def _acquire(file: IO[str], path: Path, what: str, wait_seconds: float) -> None:
    until, told = time.monotonic() + wait_seconds, False
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            file.seek(0)
            holder = file.read() or "another process"
            if time.monotonic() >= until:
                raise UserError(
                    f"{what} is in the hands of {holder} (lock: {path}); wait until it has ended, or end it"
                ) from None
            if not told:
                print(f"{what} is in the hands of {holder}; waiting up to {wait_seconds:.0f} s", flush=True)
                told = True
            time.sleep(min(0.2, wait_seconds))
