"""``score``: turn a benchmark's samples into numbers with intervals, and keep what the scorer saw.

Processes share the samples of a local judge (:meth:`reca.config.EvaluateSection.uses_local_judge`).
"""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from reca.config import Config
from reca.config.evaluate import sampling_settings
from reca.evaluation import statistics
from reca.evaluation.benchmark import (
    Benchmark,
    CategoryEstimate,
    Estimate,
    ItemScore,
    Scores,
    load_benchmark,
    values_of,
    write_items,
)
from reca.evaluation.samples import Row, read_manifest
from reca.runtime.distributed import SINGLE_PROCESS, DistributedContext, init_distributed
from reca.runtime.errors import UserError
from reca.runtime.files import write_json
from reca.runtime.progress import Progress
from reca.stages.result import read_result

PART = 64
"""Samples that a process judges before it takes the next."""
INCOMPLETE = "variant: official but for the values that failed"
"""A protocol that would be official if all values were there."""


def score(
    config: Config, root: Path, variant: str, benchmark: str, *, from_replies: bool = False, dry_run: bool = False
) -> None:
    """Write ``outputs/scores/<variant>/<benchmark>.items.jsonl``, then ``<benchmark>.json``.

    Args:
        config: The composed configuration.
        root: The project folder.
        variant: Whose samples: ``base`` or ``aligned``.
        benchmark: Its name.
        from_replies: Ask no judge: only replies that are stored count.
        dry_run: Say what asking the judge would cost, and write nothing.

    Raises:
        UserError: The samples are missing, incomplete, or were made for other prompts.
    """
    bench = load_benchmark(benchmark, config, root)
    folder = root / "outputs/samples" / variant / benchmark
    rows = read_manifest(folder)
    made = _check(folder, rows, config, benchmark)
    configure_judge(bench, root / config.paths.state / "replies" / variant, from_replies=from_replies, dry_run=dry_run)
    if dry_run:
        print(f"score {variant} {benchmark}: {bench.estimate(rows, folder)}")  # type: ignore[attr-defined]  # see configure_judge
        return
    with init_distributed(config.hardware.device) as distributed:
        measure(bench, config, variant, folder, rows, made, root / "outputs/scores" / variant, distributed)


def configure_judge(bench: Benchmark, replies: Path, *, from_replies: bool = False, dry_run: bool = False) -> None:
    """Tell a benchmark that asks a judge where its replies are kept, and whether to ask at all.

    Raises:
        UserError: Something is wanted of replies, and this benchmark has none.
    """
    judge_client = getattr(bench, "judge_client", None)
    if judge_client is not None:
        judge_client.file, judge_client.only_stored = replies / f"{bench.name}.jsonl", from_replies
    elif from_replies or dry_run:
        raise UserError(f"{bench.name} asks no judge, so there are no replies and no costs: score it as it is")


def measure(
    bench: Benchmark,
    config: Config,
    variant: str,
    folder: Path,
    rows: Sequence[dict[str, Any]],
    made: dict[str, Any],
    output: Path,
    distributed: DistributedContext = SINGLE_PROCESS,
) -> None:
    """Judge samples and write both score files.

    Args:
        bench: The benchmark.
        config: The composed configuration.
        variant: Whose samples.
        folder: Where they lie.
        rows: What they are.
        made: How they were made: the facts of ``generate``.
        output: Where the files go.
        distributed: The processes that judge.

    Raises:
        UserError: They cannot be judged, or nothing could be scored.
    """
    if config.evaluate.uses_local_judge(bench.name):
        items = _judged(bench, rows, folder, distributed)
    else:
        items = bench.score(rows, folder) if distributed.is_main_process else []
    if not distributed.is_main_process:
        return
    scores = _scores(bench, items, config, variant, made)
    write_items(output / f"{bench.name}.items.jsonl", items)
    write_json(output / f"{bench.name}.json", scores.model_dump(mode="json"))
    interval = f"{scores.overall.value:.3f} [{scores.overall.low:.3f}, {scores.overall.high:.3f}]"
    failed = f", {scores.failed} of {scores.expected} failed" if scores.failed else ""
    accuracy = scores.judge.accuracy.get("exact_scene")
    judge = f"; the judge itself sees {accuracy:.1%} of held-out scenes right" if accuracy is not None else ""
    print(f"score {variant} {bench.name}: {interval}{failed}{judge}")


def _judged(bench: Benchmark, rows: Sequence[Row], folder: Path, distributed: DistributedContext) -> list[ItemScore]:
    """All items, in order, on the leading process; every process judges, or asks about, its share of the samples.

    The parts are cut before anybody knows who judges them: an image has the same neighbours in any number of processes.
    """
    parts = _parts(rows)
    progress, done = Progress(len(rows), "samples"), 0
    ask = getattr(bench, "ask", None)  # benchmarks that ask keep the replies, whoever got them
    found: dict[str, list[ItemScore]] = {}
    for number in distributed.shard(range(len(parts))):
        if ask is None:
            found[str(number)] = bench.score(parts[number], folder)
        else:
            ask(parts[number], folder)
        done += len(parts[number]) * distributed.world_size  # the others are about as fast
        progress.update(min(done, len(rows)))
    found = distributed.all_gather(found)
    if not distributed.is_main_process:
        return []
    return bench.score(rows, folder) if ask else [item for number in range(len(parts)) for item in found[str(number)]]


def _parts(rows: Sequence[Row]) -> list[list[Row]]:
    """Whole prompts, one after the other, :data:`PART` samples or some more together."""
    parts: list[list[Row]] = [[]]
    for _, prompt in groupby(rows, key=lambda row: row["prompt_id"]):
        if len(parts[-1]) >= PART:
            parts.append([])
        parts[-1].extend(prompt)
    return parts


def _check(folder: Path, rows: Sequence[dict[str, Any]], config: Config, benchmark: str) -> dict[str, Any]:
    """The facts of the generation, when the samples are complete and those that the configuration asks for."""
    again = f"run `reca generate {' '.join(folder.parts[-2:])}`"
    try:
        made = read_result(folder)
    except FileNotFoundError as error:
        raise UserError(str(error)) from None
    if len(rows) != made["expected"]:
        raise UserError(f"{folder} lists {len(rows)} of {made['expected']} samples; {again}")
    asked, wanted = made["params"]["evaluate"].get(benchmark), config.to_dict()["evaluate"][benchmark]
    if sampling_settings(asked) != sampling_settings(wanted):
        raise UserError(f"{folder} was made for evaluate.{benchmark} = {asked}, not {wanted}; {again}")
    return made


def _scores(bench: Benchmark, items: Sequence[ItemScore], config: Config, variant: str, made: dict[str, Any]) -> Scores:
    evaluate = config.evaluate
    values = values_of(items)
    all_values = [value for item in items for value in item.values]
    failed = sum(value is None for value in all_values)
    weights = getattr(bench, "weights", {})
    try:
        found = statistics.intervals(values, evaluate.confidence, evaluate.bootstrap_resamples, weights=weights)
    except ValueError as error:
        raise UserError(f"{bench.name} cannot be scored: {error} ({failed} of {len(all_values)} failed)") from None
    overall = found.pop(statistics.OVERALL)
    return Scores(
        benchmark=bench.name,
        variant=variant,  # type: ignore[arg-type]  # the schema checks it
        protocol=INCOMPLETE if failed and bench.protocol == "official" else bench.protocol,
        overall=_estimate(overall),
        categories={
            name: CategoryEstimate(**_estimate(interval).model_dump(), n=sum(bool(v) for v in values[name].values()))
            for name, interval in found.items()
        },
        expected=len(all_values),
        scored=len(all_values) - failed,
        failed=failed,
        images_per_prompt=bench.images_per_prompt,
        seed=bench.seed,
        settings={"generate": made["params"]["generate"], "evaluate": config.to_dict()["evaluate"][bench.name]},
        checkpoint=made["checkpoint"],
        judge=bench.judge,
        details=bench.details(items),
        weights={name: weights[name] for name in found} if weights else {},
    )


def _estimate(interval: statistics.Interval) -> Estimate:
    value, low, high = (min(1.0, max(0.0, round(number, 6))) for number in _numbers(interval))
    return Estimate(value=value, low=low, high=high)


def _numbers(interval: statistics.Interval) -> tuple[float, float, float]:
    return interval.value, interval.low, interval.high
