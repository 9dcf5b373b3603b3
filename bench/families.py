"""What do a family's step and its sampling cost, and what do batching and the cache gain?

    python -m bench.families            # all five, two sizes
    python -m bench.families --quick    # a smoke run: one repeat, tiny only; its numbers mean nothing

Per family, at the size of its tiny preset and at a middle size (some 30 million parameters, same classes), with
random weights in float32 on the CPU:

    cached / live     seconds of a training step on L_RecA: what the family may cache read from memory, against images
                      encoded in the step (reading and decoding image files is in neither)
    batched / single  seconds of drawing some images in one batch, against one by one

Both ways are measured in turn in every repeat, and change places from one repeat to the next; reported is the median
of the repeats' ratios, below 1 where the first way gains. Seconds are kept as context: they belong to this machine.
Sampling takes 8 steps where a family chooses (codes are drawn one by one, so Janus takes as many as there are codes).
JSON goes to bench/results/families.json. Run it on an idle machine.
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
from bench.steps import Trainer, make_batch, seconds_of, surroundings
from reca.models.base import Sampling, UnifiedModel
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
    parser.add_argument("--seconds", type=float, default=1.0, help="that one measurement should last")
    parser.add_argument("--output", type=Path, default=RESULT, help="where the answer goes")
    parser.add_argument("--quick", action="store_true", help="one repeat of the tiny size, two images")
    options = parser.parse_args(arguments)
    if options.quick:
        options.sizes, options.repeats, options.batch_size, options.seconds = ["tiny"], 1, 2, 0.0
    found: dict[str, dict[str, Any]] = {}
    for family in options.families:
        for size in options.sizes:
            row = measure(model_of(family, size), options.batch_size, options.repeats, options.seconds)
            found.setdefault(family, {})[size] = row
            print(line(family, size, row), flush=True)
    answer = {
        "question": "what do a family's step and sampling cost, and what do batching and the cache gain?",
        "repeats": options.repeats,
        "batch_size": options.batch_size,
        "num_steps": NUM_STEPS,
        "guidance_scale": GUIDANCE_SCALE,
        "families": found,
        **surroundings(),
    }
    write_json(options.output, answer)
    print(f"written: {options.output}")


def model_of(family: str, size: str) -> UnifiedModel:
    """A family's tiny preset as it is built before pre-training, or the middle size."""
    torch.manual_seed(0)
    if size == "tiny":
        tiny: UnifiedModel = import_module(f"tools.tiny_bases.{family}_tiny").build().eval()
        return tiny
    return build(family, size, CPU)


def measure(model: UnifiedModel, batch_size: int, repeats: int, seconds: float) -> dict[str, Any]:
    """Both questions for one model."""
    batch = make_batch(model, batch_size, CPU)

    def draw(seeds: Sequence[int]) -> None:
        model.generate([PROMPT] * len(seeds), Sampling(GUIDANCE_SCALE, num_steps=NUM_STEPS), SampleRng(seeds))

    def draw_each() -> None:
        for seed in batch.seeds:
            draw([seed])

    sampling = compared({"batched": lambda: draw(batch.seeds), "single": draw_each}, repeats, seconds)
    trainer = Trainer(model, lower=False)
    ways = {"cached": lambda: trainer.step(batch), "live": lambda: trainer.step(batch, cached=False)}
    training = compared(ways, repeats, seconds)
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "trained": trainer.trained,
        "cacheable": sorted(model.cacheable),
        "cached_over_live": training.pop("ratio"),
        "batched_over_single": sampling.pop("ratio"),
        "median_seconds": {**training, **sampling},
        "steps_per_second": {way: round(1 / median, 3) for way, median in training.items()},
        "images_per_second": {way: round(batch_size / median, 3) for way, median in sampling.items()},
    }


def compared(ways: Mapping[str, Callable[[], object]], repeats: int, least: float) -> dict[str, float]:
    """Median seconds of two ways, and as "ratio" the median over the repeats of first / second.

    Args:
        ways: Name -> what is timed. Each is run twice before: a first call allocates, the second tells how often a
            repeat must call it.
        repeats: How often both are timed.
        least: Seconds that a repeat of one way should last, so that clocks and interruptions matter little.
    """
    calls = {}
    for way, work in ways.items():
        work()
        calls[way] = math.ceil(least / seconds_of(work, CPU)) or 1
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(repeats):
        for way in list(ways)[:: -1 if number % 2 else 1]:
            seconds[way].append(seconds_of(partial(_several, ways[way], calls[way]), CPU) / calls[way])
    first, second = seconds.values()
    ratios = [one / other for one, other in zip(first, second, strict=True)]
    medians = {way: round(statistics.median(values), 5) for way, values in seconds.items()}
    return {**medians, "ratio": round(statistics.median(ratios), 3)}


def _several(work: Callable[[], object], calls: int) -> None:
    for _ in range(calls):
        work()


def line(family: str, size: str, row: dict[str, Any]) -> str:
    """One row for people."""
    steps, images = row["steps_per_second"], row["images_per_second"]
    return (
        f"{family:8} {size:7} {row['parameters'] / 1e6:5.1f} M  "
        f"cached/live {row['cached_over_live']:.2f} ({steps['cached']:.2f} steps/s)  "
        f"batched/single {row['batched_over_single']:.2f} ({images['batched']:.2f} images/s)"
    )


if __name__ == "__main__":
    main()
