"""Independent work items over devices: a plain loop on one device, Ray Data on several.

Items are cut before it is known who does them, and their results are files or JSON values, so results do not depend on
the number of workers. A stage passes only the items that have no finished result yet.
"""

import json
import logging
import os
import secrets
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

from reca.config.sections import HardwareSection
from reca.runtime.errors import UserError

Worker = Callable[[Iterable[Any]], Iterator[Any]]
"""Does items and yields one or more results for each."""

ATTEMPTS = 3
"""Restarts of a worker, and attempts at an item, after a worker was killed or its host was lost."""
LOCAL_RAY = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # despite its name, this binds every port to loopback on Linux too
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),  # other users of this host cannot join
}


def fan_out(items: Sequence[Any], make_worker: Callable[[], Worker], hardware: HardwareSection) -> Iterator[Any]:
    """Do all items and yield their results, in any order.

    Args:
        items: JSON values.
        make_worker: Called once on every device; Ray needs it picklable, so it is a ``partial`` of a module's function.
        hardware: Its ``ray``, ``processes`` and ``nodes`` decide who does the items.

    Raises:
        UserError: A worker has raised it, Ray is not installed, or the cluster is too small.
        SystemExit: By SIGTERM, while Ray does the items.
    """
    if not items:
        return
    if hardware.ray is None or (hardware.ray == "local" and hardware.processes == 1):
        if hardware.devices > 1:
            print(f"hardware.ray=null: this stage uses one device of {hardware.devices}", flush=True)
        yield from make_worker()(items)
        return
    if hardware.ray == "local":
        os.environ |= LOCAL_RAY
    try:
        import ray.data
    except ImportError:
        raise UserError(
            f"hardware.ray={hardware.ray} needs Ray: `pip install 'reca[ray]'`, or set hardware.ray=null for one device"
        ) from None
    workers = hardware.processes if hardware.ray == "local" else hardware.devices
    with _ray(hardware, workers) as gpus:
        ray.data.DataContext.get_current().enable_progress_bars = False
        rows = [{"item": json.dumps(item)} for item in items]
        results = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            _RayWorker,
            fn_constructor_args=(make_worker,),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=min(workers, len(items)), max_tasks_in_flight_per_actor=1),
            num_cpus=1,
            num_gpus=gpus,
            max_restarts=ATTEMPTS,
            max_task_retries=ATTEMPTS,
        )
        for row in results.iter_rows():
            if row["user_error"]:
                raise UserError(row["user_error"])
            yield json.loads(row["result"])


@contextmanager
def _ray(hardware: HardwareSection, workers: int) -> Iterator[int]:
    """Start Ray on this host, or join the cluster; yields the number of GPUs per worker."""
    import ray

    options: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": False}
    if hardware.ray == "local":
        options |= {"num_cpus": workers, "include_dashboard": False}
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(hardware.ray, **options)  # never without an address: Ray would join any cluster that it finds
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # Ray's own ends with status 15
        available = int(ray.cluster_resources().get("GPU", 0))
        gpus = int(hardware.device == "cuda" or (hardware.device == "auto" and available > 0))
        if gpus and available < workers:
            raise UserError(f"{workers} workers need as many GPUs, Ray has {available}: set hardware.processes")
        yield gpus
    except ConnectionError as error:
        raise UserError(f"hardware.ray={hardware.ray} cannot be joined: {error}") from None
    finally:
        ray.shutdown()
        signal.signal(signal.SIGTERM, before)


class _RayWorker:
    """A worker in an actor of Ray; user errors are results, because Ray would bury their text in its own."""

    def __init__(self, make_worker: Callable[[], Worker]) -> None:
        self._worker = cache(make_worker)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        results, user_error = list[str](), ""
        try:
            results = [json.dumps(result) for item in batch["item"] for result in self._worker()([json.loads(item)])]
        except UserError as error:
            results, user_error = ["null"], str(error)
        return {"result": results, "user_error": [user_error] * len(results)}
