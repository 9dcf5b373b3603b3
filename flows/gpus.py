"""One stage on a GPU at a time: a lock file for each device of this host, and a Prefect limit across hosts.

The file lock also chooses the device, and the kernel frees it when its last holder ends: the guard of the stage
holds it too, so after ``kill -9`` of the flow nobody gets the device before the stage is really gone. Prefect's
limit alone would do neither (facts/mlops.md §2.3).
"""

import fcntl
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from reca.runtime.errors import UserError

LIMIT = "gpu"
LEASE_SECONDS = 60
POLL_SECONDS = 1.0


def visible_devices() -> list[str]:
    """The devices that this process may use, by the names that CUDA_VISIBLE_DEVICES takes."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name for name in chosen.split(",") if name.strip()]
    return sorted((path.name[6:] for path in Path("/dev").glob("nvidia[0-9]*")), key=int)


def create_limit(slots: int | None = None) -> int:
    """Create Prefect's limit, or set it anew.

    Args:
        slots: How many; ``None``: as many as this machine has devices, at least one.
    """
    from prefect.client.orchestration import get_client

    slots = slots if slots is not None else max(len(visible_devices()), 1)
    with get_client(sync_client=True) as client:
        client.upsert_global_concurrency_limit_by_name(LIMIT, slots)
    return slots


@contextmanager
def devices(count: int, say: Callable[[str], None]) -> Iterator[tuple[str, list[int]]]:
    """Hold ``count`` devices of this host and as many slots of the limit ``gpu``.

    Args:
        count: How many.
        say: Told when there is a wait.

    Yields:
        The value for CUDA_VISIBLE_DEVICES, and the descriptors of the locks, to be held by the guard as well.

    Raises:
        UserError: The host has fewer devices, or the limit was never created.
    """
    from prefect.concurrency._asyncio import ConcurrencySlotAcquisitionError
    from prefect.concurrency.sync import concurrency

    names = visible_devices()
    if len(names) < count:
        raise UserError(f"hardware.processes={count}, but this machine shows {len(names)} GPUs: {names}")
    with ExitStack() as stack:
        locks = _lock_devices(names, count, stack, say)
        try:
            stack.enter_context(concurrency(LIMIT, occupy=count, strict=True, lease_duration=LEASE_SECONDS))
        except ConcurrencySlotAcquisitionError as error:
            raise UserError(
                f"the Prefect limit {LIMIT!r} cannot be had ({error}); create it with `reca deploy`"
            ) from None
        yield ",".join(locks), list(locks.values())


def _lock_devices(names: list[str], count: int, stack: ExitStack, say: Callable[[str], None]) -> dict[str, int]:
    """All ``count`` locks or none, so that two stages never wait for each other's half."""
    waiting = False
    while True:
        held: dict[str, int] = {}
        for name in names:
            if len(held) < count and (descriptor := _try_lock(name)) is not None:
                held[name] = descriptor
        if len(held) == count:
            for descriptor in held.values():
                stack.callback(os.close, descriptor)
            return held
        for descriptor in held.values():
            os.close(descriptor)
        if not waiting:
            say(f"waiting for {count} of the GPUs {', '.join(names)}: another stage has them")
            waiting = True
        time.sleep(POLL_SECONDS)


def _try_lock(name: str) -> int | None:
    path = Path(tempfile.gettempdir()) / f"reca-gpu-{name.replace('/', '_')}.lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
