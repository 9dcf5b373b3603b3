"""Cost of evaluation: batches against single images, and the share outside the model.

    python -m bench.evaluation            # the default base, 8 prompts per GenEval task, 2 images each
    python -m bench.evaluation --quick    # a smoke run: 1 prompt each, one repeat

The stages `generate` and `score` of the benchmark `scenes` run in this process, in a folder without samples: planning,
generation, PNG files, digests, manifest, judging, intervals, score files. Timed inside them are the model's `generate`,
the scene detector's `detect` and loading the weights. Loading is subtracted everywhere, because
a real evaluation is much longer.

    images_per_second   of `generate`, in batches and one by one; batched_over_single is the ratio of the two
    outside_the_model   share of `generate` and `score` outside model and judge, in batches and one by one

Both variants alternate in every repeat and swap their order between repeats; reported are medians of the repeats.
JSON goes to bench/results/evaluation.json. Run on an idle machine.
"""

import argparse
import io
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from bench.steps import environment_info, stopwatch
from reca.config import ROOT, Config, compose
from reca.evaluation.judges.scene_detector import SceneDetector
from reca.evaluation.judges.scene_judge import FOLDER
from reca.models.loading import family_class
from reca.runtime.files import write_json
from reca.stages import generate as generate_stage
from reca.stages.score import score

RESULT = Path(__file__).parent / "results/evaluation.json"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the answer, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="model=…, generate.num_steps=…, …")
    parser.add_argument("--prompts", type=int, default=8, help="per task, six tasks")
    parser.add_argument("--batch-size", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULT, help="file of the result")
    parser.add_argument("--quick", action="store_true", help="one prompt each, one repeat, batches of four")
    options = parser.parse_args(arguments)
    if options.quick:
        options.prompts, options.repeats, options.batch_size = 1, 1, 4
    results: dict[str, list[dict[str, float]]] = {"batched": [], "single": []}
    sizes = {"batched": options.batch_size, "single": 1}
    for number in range(options.repeats):
        for variant in list(sizes)[:: -1 if number % 2 else 1]:
            results[variant].append(measure(configuration(options.overrides, options.prompts, sizes[variant])))
    rows = {variant: _medians(repeats) for variant, repeats in results.items()}
    speeds = [[row["images_per_second"] for row in repeats] for repeats in results.values()]
    ratios = [batched / single for batched, single in zip(*speeds, strict=True)]
    answer = {
        "question": "what does evaluation cost: batches against single images, and the share outside the model?",
        "overrides": options.overrides,
        "prompts_per_task": options.prompts,
        "batch_size": options.batch_size,
        "repeats": options.repeats,
        "batched_over_single": round(statistics.median(ratios), 3),
        "ways": {variant: {name: round(value, 4) for name, value in row.items()} for variant, row in rows.items()},
        **environment_info(),
    }
    write_json(options.output, answer)
    for variant, row in answer["ways"].items():
        speed, outside = row["images_per_second"], row["outside_the_model"]
        print(f"{variant:8} {speed:8.2f} images/s, {outside:.1%} of generate and score outside model and judge")
    print(f"batched/single {answer['batched_over_single']:.2f}; written: {options.output}")


def _medians(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


def configuration(overrides: Sequence[str], prompts: int, batch_size: int) -> Config:
    """Compose a small evaluation of the default base."""
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
    """Run both stages once in a temporary folder."""
    family: Any = family_class(config.model.family)
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        root = Path(folder)
        shutil.copytree(ROOT / FOLDER, root / FOLDER)
        (root / config.model.checkpoint).parent.mkdir(parents=True, exist_ok=True)
        (root / config.model.checkpoint).symlink_to(ROOT / config.model.checkpoint)
        with (
            stopwatch(family, "generate") as model,
            stopwatch(generate_stage, "load_checkpoint") as load,
            stopwatch(SceneDetector, "detect") as judge,
        ):
            start = time.perf_counter()
            generate_stage.generate(config, root, "base", "scenes")
            generated = time.perf_counter()
            score(config, root, "base", "scenes")
            scored = time.perf_counter()
    images = 6 * config.evaluate.scenes.prompts_per_category * config.evaluate.scenes.images_per_prompt
    generate_seconds, total = generated - start - load[0], scored - start - load[0]
    return {
        "images_per_second": images / generate_seconds,
        "outside_the_model": 1 - (model[0] + judge[0]) / total,
        "generate_seconds": generate_seconds,
        "model_seconds": model[0],
        "score_seconds": scored - generated,
        "judge_seconds": judge[0],
        "load_seconds": load[0],
    }


if __name__ == "__main__":
    main()
