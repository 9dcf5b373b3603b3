"""Keeping Prefect's states true: runs that are cancelled end, and runs that were killed are marked as crashed.

Prefect leaves cancellation to the worker, which gets an event: one that arrives while a run is just
starting can be lost, and a run without a worker (``reca run``) gets none and stays ``Cancelling`` for ever. So the
flow polls.
"""

import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Self
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowFilter, FlowFilterName, FlowRunFilter, FlowRunFilterState
from prefect.client.schemas.filters import FlowRunFilterStateType as StateTypes
from prefect.client.schemas.objects import StateType
from prefect.states import Cancelled, Crashed, State

from reca.runtime import workspace

POLL_SECONDS = 5.0
CANCELLED_STATES = {StateType.CANCELLING, StateType.CANCELLED}
UNFINISHED_STATES = [StateType.RUNNING, StateType.PENDING, StateType.CANCELLING]


class CancellationWatch:
    """Poll the server during the block, and stop the run when it was cancelled.

    Args:
        run_id: The flow run.
        stop: Called once, from another thread, when the run was cancelled.
    """

    def __init__(self, run_id: UUID, stop: Callable[[], None]) -> None:
        self.cancelled = False
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
            while not self._over.wait(POLL_SECONDS):
                with suppress(Exception):  # a server that does not answer now is polled again
                    state = client.read_flow_run(self._run_id).state
                    self.cancelled = state is not None and state.type in CANCELLED_STATES
                if self.cancelled:
                    self._stop()
                    return


def mark_dead_runs(state: Path, log: Callable[[str], None]) -> None:
    """Mark unfinished flow runs whose process has ended as Crashed, or as Cancelled if they were being cancelled.

    Args:
        state: The state folder with the leases of the runs (:func:`reca.runtime.workspace.run_lease`).
        log: Called with a message for each run.
    """
    unfinished = FlowRunFilter(state=FlowRunFilterState(type=StateTypes(any_=UNFINISHED_STATES)))
    reca_flow = FlowFilter(name=FlowFilterName(any_=["reca"]))
    with get_client(sync_client=True) as client:
        for run in client.read_flow_runs(flow_filter=reca_flow, flow_run_filter=unfinished):
            if not workspace.lease_expired(state, str(run.id)):
                continue
            cancelling = run.state is not None and run.state.type == StateType.CANCELLING
            crashed: State[Any] = Crashed(message="its process ended without a report (killed, or a power cut)")
            end: State[Any] = Cancelled() if cancelling else crashed
            client.set_flow_run_state(run.id, end, force=True)
            workspace.remove_lease(state, str(run.id))
            log(f"the earlier run {run.name} had been killed; marked as {end.name}")
