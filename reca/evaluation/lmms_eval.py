"""``reca lmms-eval``: other benchmarks' scores, by lmms-eval in an environment of its own.

lmms-eval (EvolvingLMMs-Lab/lmms-eval, MIT) pins nearly a hundred packages that do not go with ours, so it is started as
a command of an interpreter that the user names, asked about a model that it loads itself or reaches at an endpoint, and
its ``<time>_results.json`` is read back. The numbers are lmms-eval's, by its prompts, its reading of replies and its
aggregation, which differ from the benchmarks' own in places (docs/benchmarks.md); they enter no report and no gate.
"""

import argparse
import json
import math
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from reca.runtime.errors import UserError
from reca.runtime.files import write_json

FAILED_REQUEST = "[LMMS_EVAL_"
"""How a reply begins that lmms-eval made up for a request that failed or was not sent; it scores it as an answer."""
NO_SCORES = ("alias", "samples", "name")
"""Keys of a task's results that are no metric."""
NO_VERSION = "Yaml"
"""Told of a task whose version stands in a list, as most do: lmms-eval reads mappings only."""
_SECRET = re.compile(r"((?:key|token|secret|password)=)[^,\s]+", re.IGNORECASE)
_PROBE = """
import importlib.metadata, importlib.util, json, pathlib
root = pathlib.Path(importlib.util.find_spec("lmms_eval").origin).resolve().parents[1]
print(json.dumps({"version": importlib.metadata.version("lmms_eval"), "checkout": (root / ".git").exists()}))
"""


class Release(BaseModel):
    """Which lmms-eval an interpreter has."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: str
    checkout: bool
    """Whether it lies in a repository of its own. Else the commit that it tells is none, or that of whatever
    repository its environment lies in."""


class Metric(BaseModel):
    """One number of lmms-eval, in the unit that the task gives it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: float
    standard_error: float | None = None


class TaskScores(BaseModel):
    """A task of lmms-eval. Not :class:`reca.evaluation.benchmark.Scores`: units and intervals are its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str
    task_version: str
    protocol: str
    """``lmms-eval <version>: …``, with its commit where it runs from a checkout."""
    metrics: dict[str, Metric]
    """Its names, with the filter behind a comma, such as ``mme_perception_score,none``."""
    expected: int | None
    """Samples of the task, or of all tasks of a group; ``None`` where it does not say."""
    scored: int | None
    failed_requests: int | None
    """Replies that lmms-eval made up and scored; ``None`` where it wrote no samples."""
    model: str
    model_args: str
    source: str
    """The file that this was read from."""


def run(options: argparse.Namespace) -> None:
    """Start lmms-eval and write ``<output>/<task>.json`` for every task.

    Raises:
        UserError: It cannot be started, fails, or leaves no results of a task.
    """
    release = installed(options.python)
    raw = options.output / "raw"
    before = set(_results(raw))
    command = [options.python, "-m", "lmms_eval", "--model", options.model, "--model_args", options.model_args]
    command += ["--tasks", ",".join(options.tasks), "--batch_size", "1", "--log_samples", "--output_path", str(raw)]
    command += [] if options.limit is None else ["--limit", str(options.limit)]
    command += [] if options.include_path is None else ["--include_path", str(options.include_path)]
    print(f"lmms-eval {release.version}:", _SECRET.sub(r"\1…", " ".join(command)), flush=True)
    done = subprocess.run(command, check=False)
    if done.returncode:
        raise UserError(f"lmms-eval ended with status {done.returncode}; what it said stands above")
    new = sorted(set(_results(raw)) - before)
    if not new:  # whatever goes wrong once it has begun, it tells, and ends with status 0
        raise UserError(f"lmms-eval left no *_results.json below {raw}; what it said stands above")
    for scores in read(new[-1], options.tasks, release, limited=options.limit is not None):
        write_json(options.output / f"{scores.task}.json", scores.model_dump(mode="json"))
        print(line(scores))


def installed(python: str) -> Release:
    """The lmms-eval of an interpreter.

    Raises:
        UserError: The interpreter cannot be started or has none.
    """
    try:
        asked = subprocess.run([python, "-c", _PROBE], check=False, capture_output=True, text=True)
    except OSError as error:
        raise UserError(f"{python} cannot be started ({error}); --python names lmms-eval's interpreter") from None
    if asked.returncode:
        raise UserError(f"{python} has no lmms-eval: install it there, or name another interpreter with --python")
    return Release.model_validate_json(asked.stdout)


def _results(folder: Path) -> list[Path]:
    """All files of results: ``<output>/<model>/<time>_results.json``."""
    return sorted(folder.rglob("*_results.json"), key=lambda path: path.name)


def read(path: Path, tasks: Sequence[str], release: Release, limited: bool = False) -> list[TaskScores]:
    """Read a file of results.

    Args:
        path: ``<time>_results.json``; the tasks' ``<time>_samples_<task>.jsonl`` may lie beside it.
        tasks: Which ones; a group that has no numbers of its own stands for its tasks.
        release: What wrote it.
        limited: Whether only some samples of each were asked for.

    Raises:
        UserError: It is no such file, or lacks a task.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        results = content["results"]
        if missing := [task for task in tasks if not results.get(task)]:
            raise UserError(f"{path} has no results of {', '.join(missing)}; it has {', '.join(results) or 'none'}")
        wanted = [each for task in tasks for each in ([task] if _metrics(results[task]) else _members(content, task))]
        return [_task(path, content, task, release, limited) for task in wanted]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no file of lmms-eval's results ({error!r})") from None


def _task(path: Path, content: Mapping[str, Any], task: str, release: Release, limited: bool) -> TaskScores:
    found, members = content["results"][task], _members(content, task)
    if not (metrics := _metrics(found)):
        raise UserError(f"{path} has no number for {task}: {json.dumps(found)[:300]}")
    config = content.get("config", {})
    commit = content.get("git_hash") if release.checkout else None
    told = [f"lmms-eval {release.version}: its prompts, reading and aggregation", f"commit {commit}" if commit else ""]
    return TaskScores(
        task=task,
        task_version=_version(content, task),
        protocol="; ".join(filter(None, [*told, "only some of the samples" if limited else ""])),
        metrics=metrics,
        expected=_sum(_size(content, member, "original") for member in members),
        scored=_sum(_size(content, member, "effective") for member in members),
        failed_requests=_sum(_failed(path, member) for member in members),
        model=str(config.get("model", "unknown")),
        model_args=str(config.get("model_args", "unknown")),
        source=path.name,
    )


def _metrics(found: Mapping[str, Any]) -> dict[str, Metric]:
    numbers = {name: value for name, value in found.items() if name not in NO_SCORES and _is_number(value)}
    return {
        name: Metric(value=value, standard_error=numbers.get(_error_of(name)))
        for name, value in numbers.items()
        if "_stderr" not in name
    }


def _members(content: Mapping[str, Any], task: str) -> list[str]:
    """The tasks of a group, and of the groups in it; a task is its own."""
    below = content.get("group_subtasks", {}).get(task) or []
    return [member for each in below for member in _members(content, each)] or [task]


def _version(content: Mapping[str, Any], task: str) -> str:
    version = content.get("versions", {}).get(task, "unknown")
    listed = content.get("configs", {}).get(task, {}).get("metadata")
    if version == NO_VERSION and isinstance(listed, list):
        return str(next((each["version"] for each in listed if "version" in each), version))
    return str(version)


def _size(content: Mapping[str, Any], task: str, kind: str) -> int | None:
    size: int | None = content.get("n-samples", {}).get(task, {}).get(kind)
    return size


def _sum(numbers: Iterable[int | None]) -> int | None:
    """``None`` if any is."""
    known = list(numbers)
    return None if None in known else sum(number for number in known if number is not None)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _error_of(name: str) -> str:
    metric, comma, kind = name.partition(",")
    return f"{metric}_stderr{comma}{kind}"


def _failed(path: Path, task: str) -> int | None:
    samples = path.with_name(path.name.replace("_results.json", f"_samples_{task}.jsonl"))
    if not samples.is_file():
        return None
    return sum(FAILED_REQUEST in text for text in samples.read_text(encoding="utf-8").split("\n"))


def line(scores: TaskScores) -> str:
    """One task for people."""
    numbers = ", ".join(f"{name} {metric.value:.4f}" for name, metric in scores.metrics.items())
    failed = f"; {scores.failed_requests} REQUESTS FAILED AND COUNT AS ANSWERS" if scores.failed_requests else ""
    return f"lmms-eval {scores.task}: {numbers} ({scores.scored} of {scores.expected} samples{failed})"
