"""Runs that were killed still look alive on Prefect's pages; the next run puts that right."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowFilter, FlowFilterName, FlowRunFilter, FlowRunFilterState
from prefect.client.schemas.filters import FlowRunFilterStateType as StateTypes
from prefect.client.schemas.objects import StateType
from prefect.states import Cancelled, Crashed, State

from reca.runtime import workspace

UNFINISHED = [StateType.RUNNING, StateType.PENDING, StateType.CANCELLING]


def reconcile(state: Path, say: Callable[[str], None]) -> None:
    """Mark flow runs of this project whose process is gone as Crashed, or as Cancelled where that was wanted.

    Args:
        state: The state folder, where every run shows that it is alive (:func:`reca.runtime.workspace.run_lease`).
        say: Told about each.
    """
    unfinished = FlowRunFilter(state=FlowRunFilterState(type=StateTypes(any_=UNFINISHED)))
    with get_client(sync_client=True) as client:
        for run in client.read_flow_runs(
            flow_filter=FlowFilter(name=FlowFilterName(any_=["reca"])), flow_run_filter=unfinished
        ):
            if not workspace.lease_expired(state, str(run.id)):
                continue
            wanted = run.state is not None and run.state.type == StateType.CANCELLING
            end: State[Any] = (
                Cancelled() if wanted else Crashed(message="its process ended without a word (killed, or a power cut)")
            )
            client.set_flow_run_state(run.id, end, force=True)
            workspace.remove_lease(state, str(run.id))
            say(f"the earlier run {run.name} had been killed; marked as {end.name}")
