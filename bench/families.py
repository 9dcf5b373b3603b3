"""Cost of each family's training step and sampling, and the gain of batching and of the cache.

    python -m bench.families            # all five, two sizes
    python -m bench.families --quick    # a smoke run: one repeat, tiny only

Per family, at the size of its tiny preset and at a middle size (some 30 million parameters, same classes), with
random weights in float32 on the CPU:

    cached / live     seconds of a training step on L_RecA: cacheable inputs read from memory, against images encoded
                      in the step (reading and decoding image files is in neither)
    batched / single  seconds of generating some images in a batch, against one by one

Both variants alternate in every repeat, and swap their order from one repeat to the next. The result is the median of
the repeats' ratios, below 1 where the first variant is faster; seconds are specific to the machine. Sampling takes 8
steps, but in Janus one step per code.
JSON goes to bench/results/families.json. Run on an idle machine.
"""

import argparse
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from bench.models import build
from bench.sizes import FAMILIES
from bench.steps import Trainer, environment_info, make_batch, time_call
from reca.models.base import UnifiedModel
from reca.models.sampling import Sampling
from reca.runtime.files import write_json
from reca.runtime.seeding import SampleRng

RESULT = Path(__file__).parent / "results/families.json"
CPU = torch.device("cpu")
NUM_STEPS, GUIDANCE_SCALE = 8, 2.0
PROMPT = "a photo of a red circle"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the ratios, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--sizes", nargs="+", choices=("tiny", "middle"), default=["tiny", "middle"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=1.0, help="duration of a measurement")
    parser.add_argument("--output", type=Path, default=RESULT, help="file of the result")
    parser.add_argument("--quick", action="store_true", help="one repeat of the tiny size, two images")
    options = parser.parse_args(arguments)
    if options.quick:
        options.sizes, options.repeats, options.batch_size, options.seconds = ["tiny"], 1, 2, 0.0
    results: dict[str, dict[str, Any]] = {}
    for family in options.families:
        for size in options.sizes:
            row = measure(model_of(family, size), options.batch_size, options.repeats, options.seconds)
            results.setdefault(family, {})[size] = row
            print(line(family, size, row), flush=True)
    answer = {
        "question": "what do a family's step and sampling cost, and what do batching and the cache gain?",
        "repeats": options.repeats,
        "batch_size": options.batch_size,
        "num_steps": NUM_STEPS,
        "guidance_scale": GUIDANCE_SCALE,
        "families": results,
        **environment_info(),
    }
    write_json(options.output, answer)
    print(f"written: {options.output}")


def model_of(family: str, size: str) -> UnifiedModel:
    """Build a family's tiny preset as before pre-training, or its middle size."""
    torch.manual_seed(0)
    if size == "tiny":
        tiny: UnifiedModel = import_module(f"tools.tiny_bases.{family}_tiny").build().eval()
        return tiny
    return build(family, size, CPU)


def measure(model: UnifiedModel, batch_size: int, repeats: int, seconds: float) -> dict[str, Any]:
    """Measure training and sampling of a model."""
    batch = make_batch(model, batch_size, CPU)

    def generate(seeds: Sequence[int]) -> None:
        model.generate([PROMPT] * len(seeds), Sampling(GUIDANCE_SCALE, num_steps=NUM_STEPS), SampleRng(seeds))

    def generate_each() -> None:
        for seed in batch.seeds:
            generate([seed])

    sampling = compare_variants({"batched": lambda: generate(batch.seeds), "single": generate_each}, repeats, seconds)
    trainer = Trainer(model, autocast_bf16=False)
    variants = {"cached": lambda: trainer.step(batch), "live": lambda: trainer.step(batch, cached=False)}
    training = compare_variants(variants, repeats, seconds)
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "trained": trainer.trained,
        "cacheable": sorted(model.cacheable),
        "cached_over_live": training.pop("ratio"),
        "batched_over_single": sampling.pop("ratio"),
        "median_seconds": {**training, **sampling},
        "steps_per_second": {variant: round(1 / median, 3) for variant, median in training.items()},
        "images_per_second": {variant: round(batch_size / median, 3) for variant, median in sampling.items()},
    }


def compare_variants(
    variants: Mapping[str, Callable[[], object]], repeats: int, min_seconds: float
) -> dict[str, float]:
    """Return the median seconds of two variants, and as "ratio" the median over the repeats of first / second.

    Args:
        variants: Name -> timed function. Each runs twice before: the first call allocates, the second determines the
            number of calls per repeat.
        repeats: Number of repeats.
        min_seconds: Minimum duration of a repeat, so that clocks and interruptions matter little.
    """
    calls = {}
    for variant, work in variants.items():
        work()
        calls[variant] = math.ceil(min_seconds / time_call(work, CPU)) or 1
    seconds: dict[str, list[float]] = {variant: [] for variant in variants}
    for number in range(repeats):
        for variant in list(variants)[:: -1 if number % 2 else 1]:
            seconds[variant].append(
                time_call(partial(_repeat_calls, variants[variant], calls[variant]), CPU) / calls[variant]
            )
    first, second = seconds.values()
    ratios = [a / b for a, b in zip(first, second, strict=True)]
    medians = {variant: round(statistics.median(values), 5) for variant, values in seconds.items()}
    return {**medians, "ratio": round(statistics.median(ratios), 3)}


def _repeat_calls(work: Callable[[], object], calls: int) -> None:
    for _ in range(calls):
        work()


def line(family: str, size: str, row: dict[str, Any]) -> str:
    """Format a row."""
    steps, images = row["steps_per_second"], row["images_per_second"]
    return (
        f"{family:8} {size:7} {row['parameters'] / 1e6:5.1f} M  "
        f"cached/live {row['cached_over_live']:.2f} ({steps['cached']:.2f} steps/s)  "
        f"batched/single {row['batched_over_single']:.2f} ({images['batched']:.2f} images/s)"
    )


if __name__ == "__main__":
    main()
