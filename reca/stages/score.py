"""``score``: judge a benchmark's samples, and write scores with confidence intervals.

Devices share the samples of a local judge (:meth:`reca.config.EvaluateSection.uses_local_judge`).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from reca.config import Config
from reca.config.evaluate import sampling_arguments, sampling_settings
from reca.evaluation.benchmark import Benchmark, ItemScore, Scores, load_benchmark, read_item, values_of, write_items
from reca.evaluation.samples import Row, read_manifest
from reca.evaluation.statistics import OVERALL, Estimate, intervals
from reca.runtime.errors import UserError
from reca.runtime.fan_out import fan_out
from reca.runtime.files import write_json
from reca.runtime.progress import Progress
from reca.stages.result import read_result

CHUNK_SIZE = 64
"""Samples that a device judges before it takes the next."""
INCOMPLETE = "variant: official but for the values that failed"
"""The protocol of a score that lacks only failed values to be official."""


def score(
    config: Config, root: Path, variant: str, benchmark: str, *, from_replies: bool = False, dry_run: bool = False
) -> None:
    """Write ``outputs/scores/<variant>/<benchmark>.items.jsonl``, then ``<benchmark>.json``.

    Args:
        config: The composed configuration.
        root: The project folder.
        variant: The model that made the samples: ``base`` or ``aligned``.
        benchmark: Name of the benchmark.
        from_replies: Ask no judge: only stored replies count.
        dry_run: Only print the cost of asking the judge.

    Raises:
        UserError: The samples are missing, incomplete, or were made for other prompts.
    """
    bench = load_benchmark(benchmark, config, root)
    folder = root / "outputs/samples" / variant / benchmark
    rows = read_manifest(folder)
    generation = _check(folder, rows, config, benchmark)
    bench.configure_judge(root / config.paths.state / "replies" / variant, only_stored=from_replies)
    if dry_run:
        print(f"score {variant} {benchmark}: {bench.estimate(rows, folder)}")
        return
    measure(bench, config, variant, folder, rows, generation, root / "outputs/scores" / variant, not from_replies)


def measure(
    bench: Benchmark,
    config: Config,
    variant: str,
    folder: Path,
    rows: Sequence[Row],
    generation: Mapping[str, Any],
    output: Path,
    on_devices: bool = True,
) -> None:
    """Judge samples and write both score files.

    Args:
        bench: The benchmark.
        config: The composed configuration.
        variant: The model that made the samples, or ``evaluated``.
        folder: The folder of samples.
        rows: The rows of its manifest.
        generation: ``result.json`` of the stage that made the samples.
        output: The folder of the score files.
        on_devices: Whether a local judge may be asked; ``False`` if only stored replies count.

    Raises:
        UserError: The samples cannot be judged, or none could be scored.
    """
    if on_devices and config.evaluate.uses_local_judge(bench.name):
        items = _score_on_devices(bench, rows, folder, config)
    else:
        items = bench.score(rows, folder)
    scores = _summarise(bench, items, config, variant, generation)
    write_items(output / f"{bench.name}.items.jsonl", items)
    write_json(output / f"{bench.name}.json", scores.model_dump(mode="json"))
    interval = f"{scores.overall.value:.3f} [{scores.overall.low:.3f}, {scores.overall.high:.3f}]"
    failed = f", {scores.failed} of {scores.expected} failed" if scores.failed else ""
    accuracy = scores.judge.accuracy.get("exact_scene")
    judge = f"; the judge itself sees {accuracy:.1%} of held-out scenes right" if accuracy is not None else ""
    print(f"score {variant} {bench.name}: {interval}{failed}{judge}")


def _score_on_devices(bench: Benchmark, rows: Sequence[Row], folder: Path, config: Config) -> list[ItemScore]:
    """Return all items, in order.

    The chunks do not depend on the number of devices, so an image is judged in the same batch on any number.
    """
    chunks, scored = _chunks(rows), dict[int, list[Row]]()
    progress = Progress(len(rows), "samples")
    for number, items in fan_out(list(enumerate(chunks)), partial(_ChunkJudge, bench, folder), config.hardware):
        scored[number] = items
        progress.update(sum(len(chunks[done]) for done in scored))
    if bench.asks_model:
        return bench.score(rows, folder)
    return [read_item(item) for number in range(len(chunks)) for item in scored[number]]


@dataclass(frozen=True)
class _ChunkJudge:
    """Judges numbered chunks on one device; yields their numbers and their items as JSON values."""

    bench: Benchmark
    folder: Path

    def __call__(self, chunks: Iterable[tuple[int, Sequence[Row]]]) -> Iterator[tuple[int, list[Row]]]:
        for number, rows in chunks:
            if self.bench.asks_model:
                self.bench.ask(rows, self.folder)  # its replies are stored in a file that all workers share
                yield number, []
            else:
                yield number, [asdict(item) for item in self.bench.score(rows, self.folder)]


def _chunks(rows: Sequence[Row]) -> list[list[Row]]:
    """Split rows into chunks of whole prompts, of at least :data:`CHUNK_SIZE` samples."""
    chunks: list[list[Row]] = [[]]
    for _, prompt in groupby(rows, key=lambda row: row["prompt_id"]):
        if len(chunks[-1]) >= CHUNK_SIZE:
            chunks.append([])
        chunks[-1].extend(prompt)
    return chunks


def _check(folder: Path, rows: Sequence[Row], config: Config, benchmark: str) -> dict[str, Any]:
    """Return the facts of the generation, if the samples are complete and match the configuration."""
    hint = f"run `reca generate {' '.join(folder.parts[-2:])}`"
    try:
        generation = read_result(folder)
    except FileNotFoundError as error:
        raise UserError(str(error)) from None
    if len(rows) != generation["expected"]:
        raise UserError(f"{folder} lists {len(rows)} of {generation['expected']} samples; {hint}")
    before, now = generation["params"]["evaluate"].get(benchmark), config.to_dict()["evaluate"][benchmark]
    if sampling_settings(before) != sampling_settings(now):
        raise UserError(f"{folder} was made for evaluate.{benchmark} = {before}, not {now}; {hint}")
    return generation


def _summarise(
    bench: Benchmark, items: Sequence[ItemScore], config: Config, variant: str, generation: Mapping[str, Any]
) -> Scores:
    evaluate = config.evaluate
    all_values = [value for item in items for value in item.values]
    failed, weights = sum(value is None for value in all_values), bench.weights
    try:
        estimates = intervals(values_of(items), evaluate.confidence, evaluate.bootstrap_resamples, weights)
    except ValueError as error:
        raise UserError(f"{bench.name} cannot be scored: {error} ({failed} of {len(all_values)} failed)") from None
    overall = estimates.pop(OVERALL)
    return Scores(
        benchmark=bench.name,
        variant=variant,  # type: ignore[arg-type]  # the schema checks it
        protocol=INCOMPLETE if failed and bench.protocol == "official" else bench.protocol,
        overall=_rounded(overall),
        categories={name: _rounded(estimate) for name, estimate in estimates.items()},
        expected=len(all_values),
        scored=len(all_values) - failed,
        failed=failed,
        images_per_prompt=bench.images_per_prompt,
        seed=bench.seed,
        settings={
            "generate": sampling_arguments(generation["params"]["generate"], bench.name),
            "evaluate": config.to_dict()["evaluate"][bench.name],
        },
        checkpoint=generation["checkpoint"],
        judge=bench.judge,
        details=bench.details(items),
        weights={name: weights[name] for name in estimates} if weights else {},
    )


def _rounded(estimate: Estimate) -> Estimate:
    return estimate.model_copy(update={name: round(getattr(estimate, name), 6) for name in ("value", "low", "high")})
