"""Stages in DVC's order, as many side by side as the machine takes."""

import concurrent.futures
from typing import Any

from prefect.states import State

from flows.graph import Stage
from flows.run_context import RunContext
from flows.tasks import run_stage

Future = Any  # PrefectConcurrentFuture; `submit` is typed by its base class, which has no `wrapped_future`


def run_stages(stages: list[Stage], context: RunContext) -> None:
    """Run what is out of date.

    The one with the longest chain of stages behind it goes first: the base is measured beside the training, not before
    it. A stage that is up to date and reads nothing of a stage that ran is put down as unchanged without asking DVC
    again. A failure starts nothing new; what already runs may finish, for its work is kept.

    The tasks run in threads (``submit``), which is safe here: their commands end with this process, by their guards.

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
            upstream = [finished[name] for name in sorted(stage.needs)]  # drawn as arrows on Prefect's pages
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
    """The stages, those first on which the longest chain of others waits; what a stage needs stays before it."""
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
