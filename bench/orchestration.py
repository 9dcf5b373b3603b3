"""Cost of orchestration: the flow against the same stages run bare, and a rerun without changes.

    python -m bench.orchestration                    # one repeat of the smoke job: a few minutes
    python -m bench.orchestration --repeats 3

Every repeat works in two fresh copies of the project (committed and uncommitted files, empty caches) on the same
overrides:

    bare     `python -m reca <stage>` for every stage of dvc.yaml, then `register`; as many side by side as
             `hardware.parallel_stages` allows, each started when its dependencies have ended
    flow     `python -m reca run`: the same, with Prefect, DVC, lineage checks, artifacts and a private server
    no-op    the flow once more, without changes

Bare comes first in odd repeats and last in even ones, so that a warming disk cache favours neither. Reported are
medians, the ratios flow / bare and no-op / bare, and seconds of every bare stage; JSON goes to
bench/results/orchestration.json. At this size import time dominates: bare pays it once per stage, the flow twice (DVC
starts first, then the stage), so the ratio falls as the work grows. Run on an idle machine.
"""

import argparse
import concurrent.futures
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flows.graph import Stage, read_graph
from reca.config import ROOT, Config
from reca.runtime.files import write_json

SMOKE = ("experiment=smoke",)
RESULT = ROOT / "bench/results/orchestration.json"
NOT_COPIED = shutil.ignore_patterns(
    ".venv", ".reca", "outputs", "mlruns", "dvc.lock", "__pycache__", "*.egg-info", ".*_cache", "tmp", "cache"
)
"""Results and caches, including DVC's, so that every copy starts without them."""


def main() -> None:
    """Measure, print the ratios, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--work", type=Path, help="folder of the copies; default: a temporary folder")
    parser.add_argument("--output", type=Path, default=RESULT, help="file of the result")
    parser.add_argument("overrides", nargs="*", default=list(SMOKE), help="Hydra overrides; default: the smoke job")
    options = parser.parse_args()
    repeats = [repeat(number, options.overrides, options.work) for number in range(1, options.repeats + 1)]
    result = summarise(repeats, options.overrides)
    write_json(options.output, result)
    seconds = result["median_seconds"]
    print(f"bare {seconds['bare']:.1f} s, flow {seconds['flow']:.1f} s, no-op {seconds['noop']:.1f} s")
    print(f"flow / bare {result['flow_over_bare']:.2f}, no-op / bare {result['noop_over_bare']:.2f}; {options.output}")


def repeat(number: int, overrides: Sequence[str], work: Path | None) -> dict[str, Any]:
    """Run one repeat: bare and flow in separate copies, then the no-op in the flow's copy."""
    seconds: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=work, prefix="reca-orchestration-") as folder:
        for variant in ("bare", "flow") if number % 2 else ("flow", "bare"):
            root = fresh_copy(Path(folder) / variant)
            if variant == "bare":
                seconds["bare"], seconds["bare_stages"] = time_bare(root, overrides)
            else:
                seconds["flow"] = time_command(["run", *overrides], root)
                seconds["noop"] = time_command(["run", *overrides], root)
            print(f"repeat {number}, {variant}: {seconds[variant]:.1f} s", flush=True)
            shutil.rmtree(root)
    return seconds


def fresh_copy(root: Path) -> Path:
    """Copy the project without results; the copy is a git repository only if this is one."""
    shutil.copytree(ROOT, root, ignore=NOT_COPIED, symlinks=True)
    (root / "mlruns").mkdir()
    return root


def time_command(words: Sequence[str], root: Path) -> float:
    """Return the wall seconds of a ``python -m reca …`` command.

    Raises:
        SystemExit: It failed; the message has its last lines.
    """
    start = time.perf_counter()
    process = subprocess.run(
        [sys.executable, "-m", "reca", *words], cwd=root, env=_environment(), text=True, capture_output=True
    )
    seconds = time.perf_counter() - start
    if process.returncode != 0:
        last = "\n".join((process.stdout + process.stderr).splitlines()[-15:])
        raise SystemExit(f"`reca {' '.join(words)}` failed with status {process.returncode}:\n{last}")
    return seconds


def _environment() -> dict[str, str]:
    """Return the environment without variables that refer to another project's servers or state."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_", "RECA_"))}


def time_bare(root: Path, overrides: Sequence[str]) -> tuple[float, dict[str, float]]:
    """Return the wall seconds of all stages without orchestration, and of every stage.

    The order is read from DVC before the clock starts, so that both ways run the same stages.
    """
    start = time.perf_counter()
    time_command(["compose", *overrides], root)
    composing = time.perf_counter() - start
    stages, width = read_graph(root), Config.load(root / "params.yaml").hardware.parallel_stages
    start = time.perf_counter()
    seconds = run_side_by_side(stages, width, root)
    seconds["register"] = time_command(["register"], root)
    return composing + time.perf_counter() - start, {"compose": composing, **seconds}


def run_side_by_side(stages: Sequence[Stage], width: int, root: Path) -> dict[str, float]:
    """Run stages in the flow's order and width, as plain processes."""
    waiting, finished = list(stages), dict[str, float]()
    running: dict[concurrent.futures.Future[float], str] = {}
    with concurrent.futures.ThreadPoolExecutor(width) as pool:
        while waiting or running:
            for stage in [stage for stage in waiting if stage.needs <= finished.keys()][: width - len(running)]:
                waiting.remove(stage)
                running[pool.submit(time_command, words_of(stage.name), root)] = stage.name
            ended, _ = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
            for future in ended:
                finished[running.pop(future)] = future.result()
    return finished


def words_of(stage: str) -> list[str]:
    """Return the command line of a stage: ``generate@base-scenes`` -> ``["generate", "base", "scenes"]``."""
    if stage in ("code", "base"):
        return ["fingerprint", stage]
    verb, _, item = stage.partition("@")
    return [verb, *(item.split("-", 1) if item else [])]


def summarise(repeats: Sequence[dict[str, Any]], overrides: Sequence[str]) -> dict[str, Any]:
    """Return medians and ratios over the repeats, and the machine."""
    median = {kind: statistics.median(result[kind] for result in repeats) for kind in ("bare", "flow", "noop")}
    return {
        "question": "what does orchestration cost?",
        "overrides": list(overrides),
        "flow_over_bare": round(median["flow"] / median["bare"], 3),
        "noop_over_bare": round(median["noop"] / median["bare"], 3),
        "median_seconds": {kind: round(value, 2) for kind, value in median.items()},
        "repeats": [_round_values(result) for result in repeats],
        "cores": len(os.sched_getaffinity(0)),
        "load_average": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
    }


def _round_values(values: dict[str, Any]) -> dict[str, Any]:
    return {key: _round_values(value) if isinstance(value, dict) else round(value, 2) for key, value in values.items()}


if __name__ == "__main__":
    main()
