"""One stage on a GPU at a time: a lock file for each device of this host, and a Prefect limit across hosts.

The file lock also selects the device, and the kernel releases it when its last holder ends: the guard of the stage
holds it too, so after ``kill -9`` of the flow the device is free only when the stage has ended. Prefect's limit alone
does neither.
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
    """Return the devices that this process may use, as named in CUDA_VISIBLE_DEVICES."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name.strip()]
    return sorted((path.name[6:] for path in Path("/dev").glob("nvidia[0-9]*")), key=int)


def create_limit(slots: int | None = None) -> int:
    """Create or update Prefect's limit, and return its slots.

    Args:
        slots: Slots of the limit; ``None``: the number of devices of this machine, at least one.
    """
    from prefect.client.orchestration import get_client

    slots = slots if slots is not None else max(len(visible_devices()), 1)
    with get_client(sync_client=True) as client:
        client.upsert_global_concurrency_limit_by_name(LIMIT, slots)
    return slots


@contextmanager
def reserve_devices(count: int, log: Callable[[str], None]) -> Iterator[tuple[str, list[int]]]:
    """Reserve ``count`` devices of this host and as many slots of the limit ``gpu``.

    Args:
        count: Number of devices.
        log: Called with a message before a wait.

    Yields:
        The value for CUDA_VISIBLE_DEVICES, and the descriptors of the locks, which the guard holds as well.

    Raises:
        UserError: The host has fewer devices, or the limit was never created.
    """
    from prefect.concurrency._asyncio import ConcurrencySlotAcquisitionError
    from prefect.concurrency.sync import concurrency

    names = visible_devices()
    if len(names) < count:
        raise UserError(f"hardware.processes={count}, but this machine shows {len(names)} GPUs: {names}")
    with ExitStack() as stack:
        locks = _lock_devices(names, count, stack, log)
        try:
            stack.enter_context(concurrency(LIMIT, occupy=count, strict=True, lease_duration=LEASE_SECONDS))
        except ConcurrencySlotAcquisitionError as error:
            raise UserError(
                f"the Prefect limit {LIMIT!r} is not available ({error}); create it with `reca deploy`"
            ) from None
        yield ",".join(locks), list(locks.values())


def _lock_devices(names: list[str], count: int, stack: ExitStack, log: Callable[[str], None]) -> dict[str, int]:
    """Acquire all ``count`` locks or none, so that two stages never block each other half-way."""
    waiting = False
    while True:
        locks: dict[str, int] = {}
        for name in names:
            if len(locks) < count and (descriptor := _try_lock(name)) is not None:
                locks[name] = descriptor
        if len(locks) == count:
            for descriptor in locks.values():
                stack.callback(os.close, descriptor)
            return locks
        for descriptor in locks.values():
            os.close(descriptor)
        if not waiting:
            log(f"waiting for {count} of the GPUs {', '.join(names)}: another stage uses them")
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
