"""What does measuring cost: batches against image by image, and how much of it is not the model?

    python -m bench.evaluation            # the default base, 8 prompts of each of GenEval's tasks, 2 images each
    python -m bench.evaluation --quick    # a smoke run: 1 prompt each, one repeat; its numbers mean nothing

The stages `generate` and `score` of the benchmark `scenes` are run as they are, in this process, from a folder without
samples: planning, drawing, PNG files, digests, manifest, judging, intervals, score files. Timed inside them are the
model (`generate` of its class), the judge (the scene detector's `detect`) and loading the weights, which is taken off
everywhere, since a real measurement is longer than this one.

    images_per_second   of `generate`, in batches and one by one; batched_over_single is the ratio of the two
    outside_the_model   share of `generate` and `score` that is neither model nor judge, in batches and one by one

Both ways are run in turn in every repeat and change places from one to the next; reported are medians of the repeats.
JSON goes to bench/results/evaluation.json. Run it on an idle machine.
"""

import argparse
import io
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import torch

from bench.steps import surroundings
from reca.config import ROOT, Config, compose
from reca.evaluation.judges.scene_detector import SceneDetector
from reca.evaluation.judges.scene_judge import FOLDER
from reca.models.base import family_class
from reca.runtime.files import write_json
from reca.stages import generate as drawing
from reca.stages.score import score

RESULT = Path(__file__).parent / "results/evaluation.json"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the answer, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="model=…, generate.num_steps=…, …")
    parser.add_argument("--prompts", type=int, default=8, help="of each of the six tasks")
    parser.add_argument("--batch-size", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULT, help="where the answer goes")
    parser.add_argument("--quick", action="store_true", help="one prompt each, one repeat, batches of four")
    options = parser.parse_args(arguments)
    if options.quick:
        options.prompts, options.repeats, options.batch_size = 1, 1, 4
    found: dict[str, list[dict[str, float]]] = {"batched": [], "single": []}
    sizes = {"batched": options.batch_size, "single": 1}
    for number in range(options.repeats):
        for way in list(sizes)[:: -1 if number % 2 else 1]:
            found[way].append(measure(configuration(options.overrides, options.prompts, sizes[way])))
    rows = {
        way: {name: statistics.median(row[name] for row in some) for name in some[0]} for way, some in found.items()
    }
    ratios = [one["images_per_second"] / other["images_per_second"] for one, other in zip(*found.values(), strict=True)]
    answer = {
        "question": "what does measuring cost: batches against image by image, and how much of it is not the model?",
        "overrides": options.overrides,
        "prompts_per_task": options.prompts,
        "batch_size": options.batch_size,
        "repeats": options.repeats,
        "batched_over_single": round(statistics.median(ratios), 3),
        "ways": {way: {name: round(value, 4) for name, value in row.items()} for way, row in rows.items()},
        **surroundings(),
    }
    write_json(options.output, answer)
    for way, row in answer["ways"].items():
        speed, outside = row["images_per_second"], row["outside_the_model"]
        print(f"{way:8} {speed:8.2f} images/s, {outside:.1%} of generate and score outside model and judge")
    print(f"batched/single {answer['batched_over_single']:.2f}; written: {options.output}")


def configuration(overrides: Sequence[str], prompts: int, batch_size: int) -> Config:
    """The default, made small."""
    return compose(
        [
            *overrides,
            "evaluate.benchmarks=[scenes]",
            f"evaluate.scenes.prompts_per_category={prompts}",
            "evaluate.scenes.images_per_prompt=2",
            f"hardware.generate_batch_size={batch_size}",
        ]
    )


def measure(config: Config) -> dict[str, float]:
    """Both stages once, in a folder of their own."""
    family: Any = family_class(config.model.family)
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        root = Path(folder)
        shutil.copytree(ROOT / FOLDER, root / FOLDER)
        (root / config.model.checkpoint).parent.mkdir(parents=True, exist_ok=True)
        (root / config.model.checkpoint).symlink_to(ROOT / config.model.checkpoint)
        with (
            stopwatch(family, "generate") as model,
            stopwatch(drawing, "load_checkpoint") as load,
            stopwatch(SceneDetector, "detect") as judge,
        ):
            began = time.perf_counter()
            drawing.generate(config, root, "base", "scenes")
            drawn = time.perf_counter()
            score(config, root, "base", "scenes")
            scored = time.perf_counter()
    images = 6 * config.evaluate.scenes.prompts_per_category * config.evaluate.scenes.images_per_prompt
    generate_seconds, total = drawn - began - load[0], scored - began - load[0]
    return {
        "images_per_second": images / generate_seconds,
        "outside_the_model": 1 - (model[0] + judge[0]) / total,
        "generate_seconds": generate_seconds,
        "model_seconds": model[0],
        "score_seconds": scored - drawn,
        "judge_seconds": judge[0],
        "load_seconds": load[0],
    }


@contextmanager
def stopwatch(owner: Any, name: str) -> Iterator[list[float]]:
    """Seconds spent in a function of a module or class while the block runs, in a list of one."""
    original, seconds = getattr(owner, name), [0.0]

    def timed(*arguments: Any, **options: Any) -> Any:
        began = time.perf_counter()
        try:
            return original(*arguments, **options)
        finally:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[0] += time.perf_counter() - began

    setattr(owner, name, timed)
    try:
        yield seconds
    finally:
        setattr(owner, name, original)


if __name__ == "__main__":
    main()
