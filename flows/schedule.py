"""Stages in DVC's order, several at a time."""

import concurrent.futures
from typing import Any

from prefect.states import State

from flows.graph import Stage
from flows.run_context import RunContext
from flows.tasks import run_stage

Future = Any  # PrefectConcurrentFuture; `submit` is typed by its base class, which has no `wrapped_future`


def run_stages(stages: list[Stage], context: RunContext) -> None:
    """Run the stages that are out of date.

    The stage with the longest chain of dependents starts first: the base is measured during training, not before it.
    A stage that is up to date and depends on no stage that ran is recorded as unchanged without another call of DVC.
    After a failure no stage starts; running ones finish, because their results are kept.

    The tasks run in threads (``submit``), which is safe here: their guards end the commands with this process.

    Raises:
        StageFailed: The first failure.
    """
    limit = context.config.hardware.parallel_stages
    waiting, visited = by_urgency(stages), set[str]()
    finished: dict[str, Future] = {}
    running: dict[str, Future] = {}
    failure: BaseException | None = None
    while running or (waiting and not failure):
        for stage in [stage for stage in waiting if stage.needs <= finished.keys()]:
            if failure or len(running) >= limit:
                break
            unchanged = not (stage.stale or stage.needs & visited or context.parameter_differences(stage.name))
            if not unchanged:
                visited.add(stage.name)
            waiting.remove(stage)
            upstream = [finished[name] for name in sorted(stage.needs)]  # arrows on Prefect's pages
            running[stage.name] = run_stage.submit(stage, context, unchanged, wait_for=upstream, return_state=False)
        concurrent.futures.wait(
            [future.wrapped_future for future in running.values()], return_when=concurrent.futures.FIRST_COMPLETED
        )
        for name in [name for name, future in running.items() if future.wrapped_future.done()]:
            finished[name] = running.pop(name)
            failure = failure or _failure(finished[name])
    if failure:
        raise failure


def by_urgency(stages: list[Stage]) -> list[Stage]:
    """Sort stages by their longest chain of dependents, longest first; dependencies stay before dependents."""
    behind = dict.fromkeys((stage.name for stage in stages), 0)
    for stage in reversed(stages):
        for name in stage.needs:
            behind[name] = max(behind[name], behind[stage.name] + 1)
    return sorted(stages, key=lambda stage: -behind[stage.name])


def _failure(future: Future) -> BaseException | None:
    state = future.wrapped_future.result()
    if not isinstance(state, State) or state.is_completed():
        return None
    error = state.result(raise_on_failure=False)
    return error if isinstance(error, BaseException) else RuntimeError(f"ended as {state.name}: {state.message}")
