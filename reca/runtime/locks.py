"""File locks with messages for people, and readable messages for full and read-only disks."""

import errno
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from reca.runtime.errors import UserError

LOCK_WAIT_SECONDS = 60.0
"""Time to wait for a lock: a trainer that is being stopped needs a while to save."""

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
CLOSED = {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR}
# safetensors and torch's zip writer pass on the text of the operating system's error, but not its number.
OS_ERROR = re.compile(r"os error (\d+)|\[Errno (\d+)\]")


@contextmanager
def friendly_io_errors(folder: Path, subject: str) -> Iterator[None]:
    """Turn "no space", "read-only" and similar errors into a message that names the folder and a solution.

    Raises:
        UserError: The disk is full, a quota or file-size limit is reached, or the folder is not writable.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        number = _errno(error)
        if number in FULL:
            raise UserError(
                f"cannot write {subject} to {folder}: {os.strerror(number)}. Everything saved before is intact: "
                "free some space (older folders next to it may be deleted), or set paths.state to another disk, "
                "and run again"
            ) from error
        if number in CLOSED:
            raise UserError(
                f"cannot write {subject} to {folder}: {os.strerror(number)}. "
                "Make the folder writable, or set paths.state to another one, and run again"
            ) from error
        raise


def _errno(error: BaseException | None) -> int | None:
    """Return the operating system's error number from anywhere in a chain of exceptions."""
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            return error.errno
        if match := OS_ERROR.search(str(error)):
            return int(match[1] or match[2])
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def file_lock(path: Path, subject: str, wait_seconds: float = LOCK_WAIT_SECONDS) -> Iterator[None]:
    """Hold a lock file; the kernel releases it when the process ends or is killed.

    Args:
        path: The lock file; it names its holder.
        subject: The locked thing, for messages.
        wait_seconds: Time to wait for another process.

    Raises:
        UserError: Another process still holds the lock after ``wait_seconds``; the message names it.
    """
    lock = FileLock(path, thread_local=False)
    with friendly_io_errors(path.parent, "a lock"):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            _wait(lock, path, subject, wait_seconds)
        path.write_text(f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%F %T %z')}")
    try:
        yield
    finally:
        lock.release()


def _wait(lock: FileLock, path: Path, subject: str, wait_seconds: float) -> None:
    holder = path.read_text() or "another process"
    if wait_seconds:
        print(f"{subject} is in the hands of {holder}; waiting up to {wait_seconds:.0f} s", flush=True)
    try:
        lock.acquire(timeout=wait_seconds)
    except Timeout:
        raise UserError(
            f"{subject} is in the hands of {holder} (lock: {path}); wait until it has ended, or end it"
        ) from None
