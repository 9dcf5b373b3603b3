"""DVC's graph, read-only: the stages of ``dvc.yaml``, their order, and which are out of date."""

from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

from reca.config import EvaluateSection
from reca.runtime.errors import UserError

GPU, JUDGE = "gpu", "judge"


@dataclass(frozen=True)
class Stage:
    """One stage of ``dvc.yaml``."""

    name: str
    needs: frozenset[str]
    """Names of the stages whose outputs it reads."""
    stale: bool
    """``True`` if its dependencies, parameters or outputs differ from ``dvc.lock``."""
    resource: str | None
    """``meta.resource``: ``gpu``, or ``judge`` if a device is needed for benchmarks with a local judge network."""

    def uses_gpu(self, evaluate: EvaluateSection) -> bool:
        """Return whether the stage needs devices."""
        _, _, benchmark = self.name.partition("-")  # score@base-scenes
        return self.resource == GPU or (self.resource == JUDGE and evaluate.uses_local_judge(benchmark))


def read_graph(root: Path) -> list[Stage]:
    """Read the stages, each after those that it needs.

    Raises:
        UserError: The folder is not a DVC project, ``dvc.yaml`` is wrong, or tracked data is missing.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo(str(root)) as repo:
            graph = repo.index.graph
            # Data that no stage reads (prompts of benchmarks, which `reca compose` downloads) may be elsewhere.
            sources = [stage for stage in graph if stage.is_data_source and graph.pred[stage]]
            absent = [str(out) for stage in sources for out in stage.outs if not out.exists]
            if absent:
                raise UserError(f"data that DVC tracks is missing: {', '.join(absent)}; fetch it with `dvc pull`")
            with repo.lock:
                stages = {stage.name: _stage(stage, graph) for stage in graph if not stage.is_data_source}
    except DvcException as error:
        raise UserError(f"DVC cannot read the pipeline of {root}: {_whole_message(error)}") from None
    order = TopologicalSorter({name: sorted(stages[name].needs) for name in sorted(stages)})
    return [stages[name] for name in order.static_order()]


def _stage(stage: Any, graph: Any) -> Stage:
    needs = (other for other in graph.successors(stage) if not other.is_data_source)  # edges point to dependencies
    return Stage(
        name=stage.name,  # `addressing` would depend on this process's working directory
        needs=frozenset(other.name for other in needs),
        stale=bool(stage.changed()),
        resource=(stage.meta or {}).get("resource"),
    )


def _whole_message(error: BaseException) -> str:
    """Join the messages of a chain of errors; in DVC the useful one is often the cause."""
    parts = [str(error)]
    while error.__cause__ is not None:
        error = error.__cause__
        if str(error) and str(error) not in parts[-1]:
            parts.append(str(error))
    return ": ".join(parts)
