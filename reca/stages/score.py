"""``score``: turn a benchmark's samples into numbers with intervals, and keep what the scorer saw."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reca import statistics
from reca.benchmarks.base import (
    Benchmark,
    CategoryEstimate,
    Estimate,
    ItemScore,
    Scores,
    load_benchmark,
    values_of,
    write_items,
)
from reca.benchmarks.samples import read_manifest
from reca.config import Config
from reca.errors import UserError
from reca.files import write_json
from reca.progress import Progress
from reca.stages.result import read_result


def score(config: Config, root: Path, which: str, benchmark: str) -> None:
    """Write ``outputs/scores/<which>/<benchmark>.items.jsonl``, then ``<benchmark>.json``.

    Raises:
        UserError: The samples are missing, incomplete, or were made for other prompts.
    """
    bench = load_benchmark(benchmark, config, root)
    folder = root / "outputs/samples" / which / benchmark
    rows = read_manifest(folder)
    made = _check(folder, rows, config, benchmark)
    progress = Progress(len(rows), "samples")
    items = bench.score(rows, folder)
    progress.update(len(rows))
    scores = _scores(bench, items, config, which, made)
    output = root / "outputs/scores" / which
    write_items(output / f"{benchmark}.items.jsonl", items)
    write_json(output / f"{benchmark}.json", scores.model_dump(mode="json"))
    print(
        f"score {which} {benchmark}: {scores.overall.value:.3f} [{scores.overall.low:.3f}, {scores.overall.high:.3f}]"
    )


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
    if asked != wanted:
        raise UserError(f"{folder} was made for evaluate.{benchmark} = {asked}, not {wanted}; {again}")
    return made


def _scores(bench: Benchmark, items: Sequence[ItemScore], config: Config, which: str, made: dict[str, Any]) -> Scores:
    evaluate = config.evaluate
    values = values_of(items)
    all_values = [value for item in items for value in item.values]
    failed = sum(value is None for value in all_values)
    try:
        found = statistics.intervals(values, evaluate.confidence, evaluate.bootstrap_draws)
    except ValueError as error:
        raise UserError(f"{bench.name} cannot be scored: {error} ({failed} of {len(all_values)} failed)") from None
    overall = found.pop(statistics.OVERALL)
    return Scores(
        benchmark=bench.name,
        which=which,  # type: ignore[arg-type]  # the schema checks it
        protocol=bench.protocol,
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
    )


def _estimate(interval: statistics.Interval) -> Estimate:
    value, low, high = (min(1.0, max(0.0, round(number, 6))) for number in _numbers(interval))
    return Estimate(value=value, low=low, high=high)


def _numbers(interval: statistics.Interval) -> tuple[float, float, float]:
    return interval.value, interval.low, interval.high
