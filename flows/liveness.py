"""A run that is cancelled on Prefect's pages ends, whoever started it.

Prefect leaves that to the worker, which hears of it by an event: one that comes while a run has just begun can be
lost, and a run without a worker (``reca run``) hears nothing at all and stays ``Cancelling`` for
ever. So the flow asks.
"""

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Self
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType

SECONDS_BETWEEN_QUESTIONS = 5.0
NO_LONGER_WANTED = {StateType.CANCELLING, StateType.CANCELLED}


class CancellationWatch:
    """As long as the block lasts, asks the server whether the run is still wanted.

    Args:
        run_id: The flow run.
        stop: Called once, from another thread, when it is not.
    """

    def __init__(self, run_id: UUID, stop: Callable[[], None]) -> None:
        self.cancelled = False
        """Whether the run was cancelled."""
        self._run_id = run_id
        self._stop = stop
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="cancellation watch")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def _watch(self) -> None:
        with get_client(sync_client=True) as client:
            while not self._over.wait(SECONDS_BETWEEN_QUESTIONS):
                with suppress(Exception):  # a server that does not answer now is asked again
                    state = client.read_flow_run(self._run_id).state
                    self.cancelled = state is not None and state.type in NO_LONGER_WANTED
                if self.cancelled:
                    self._stop()
                    return
