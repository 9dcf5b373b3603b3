"""Overhead of the training loop and of the stage `extract`, compared with the model alone.

    python -m bench.loop            # a Janus of some 30 million parameters, and the tiny one
    python -m bench.loop --quick    # a smoke run: tiny, a few steps

L_RecA alone on rendered scenes, from the extract cache, float32 on the CPU; weights are random.

    loop_over_bare        seconds of a training step (with reading, seeds and guard, without curves) over those of
                          forward, backward, clipping and AdamW on a batch in memory
    data_wait             share of the loop's steps spent waiting for batches, without prefetching and with two
                          micro-batches prefetched
    extract_over_bare     images per second of the stage `extract` (decoding, encoding, writing, digests) over those of
                          the two encoders alone; loading the weights is timed inside the stage and subtracted;
                          the median of three

Loop and bare steps alternate, so that changes of the machine's speed affect both; reported are medians.
JSON goes to bench/results/loop.json. Run on an idle machine.
"""

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import torch

from bench.extraction import BareEncoders
from bench.models import build
from bench.steps import BenchBatch, Trainer, environment_info, stopwatch, time_call
from reca.config import ROOT, Config, compose
from reca.data.embeddings import Embeddings
from reca.models.base import Semantic, Target, UnifiedModel
from reca.models.loading import base_folder, load_base
from reca.runtime.device import configure_device
from reca.runtime.distributed import SINGLE_PROCESS
from reca.runtime.files import write_json
from reca.runtime.signals import StopRequest
from reca.stages import extract as extract_stage
from reca.stages.extract import DATASET, EMBEDDINGS
from reca.stages.ingest import ingest
from reca.training.loader import MicroBatch, MicroBatchLoader, TrainingData
from reca.training.losses import TrainingBatch, choose_templates
from reca.training.mixture import Mixture, build_mixture
from reca.training.optimizer import build_optimizer, freeze, set_training_mode
from reca.training.step import Run, SpikeGuard, train_step

RESULT = Path(__file__).parent / "results/loop.json"
CPU = torch.device("cpu")


class TimedLoader(MicroBatchLoader):
    """Adds up the seconds in which the loop waited for batches."""

    wait_seconds = 0.0

    def load(self, micro_batch: MicroBatch) -> TrainingBatch:
        """Load a batch and add its seconds."""
        start = time.perf_counter()
        batch = super().load(micro_batch)
        self.wait_seconds += time.perf_counter() - start
        return batch


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the answer, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=("tiny", "middle"), default=["tiny", "middle"])
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--extractions", type=int, default=3, help="repeats of the extraction")
    parser.add_argument("--output", type=Path, default=RESULT, help="file of the result")
    parser.add_argument("--quick", action="store_true", help="tiny, 64 images, 3 steps of 4")
    options = parser.parse_args(arguments)
    if options.quick:
        options.sizes, options.images, options.steps, options.batch_size = ["tiny"], 64, 3, 4
        options.extractions = 1
    threads, results = torch.get_num_threads(), {}
    for size in options.sizes:
        with tempfile.TemporaryDirectory(prefix="reca-loop-") as folder:
            results[size] = measure(size, Path(folder), options, threads)
        print(f"{size}: " + ", ".join(f"{name} {value}" for name, value in results[size].items()), flush=True)
    question = "what do the training loop and extraction cost beyond the model?"
    settings = {"images": options.images, "steps": options.steps, "batch_size": options.batch_size}
    write_json(options.output, {"question": question, **settings, "sizes": results, **environment_info()})
    print(f"written: {options.output}")


def measure(size: str, root: Path, options: argparse.Namespace, threads: int) -> dict[str, Any]:
    """Measure loop, waiting and extraction at one size."""
    config = compose(
        [
            "model.checkpoint=base",
            f"data.num_images={options.images}",
            f"train.global_batch_size={options.batch_size}",
            "train.mixture={reconstruction: 1.0, text_to_image: 0.0, understanding: 0.0}",
            f"hardware.micro_batch_size={options.batch_size}",
            f"hardware.threads={threads}",
        ]
    )
    torch.manual_seed(0)
    (root / config.data.path).parent.mkdir(parents=True)
    shutil.copyfile(ROOT / config.data.path, root / config.data.path)
    build("janus", size, CPU).save_official(root / "base")
    with redirect_stdout(StringIO()):
        ingest(config, root)
    configure_device("cpu", threads)
    ratios = []
    for _ in range(options.extractions):
        shutil.rmtree(root / config.paths.state, ignore_errors=True)
        with redirect_stdout(StringIO()), stopwatch(extract_stage, "load_encoders") as loading:
            stage_seconds = time_call(lambda: extract_stage.extract(config, root), CPU)
        ratios.append(round(encoders(config, root) / (stage_seconds - loading[0]), 3))
    extraction = {"extract_over_bare": statistics.median(ratios), "all_extract_over_bare": ratios}
    return {**steps(config, root, options.steps), **extraction}


def steps(config: Config, root: Path, number: int) -> dict[str, Any]:
    """Compare steps of the loop with bare ones, without and with prefetching."""
    results: dict[str, Any] = {}
    for prefetch in (0, 2):
        loop, bare = _Loop(config, root, number, prefetch), Trainer(_loaded(config, root), autocast_bf16=False)
        once = partial(bare.step, _batch(bare.model, config, root))
        seconds = [(time_call(loop.step, CPU), time_call(once, CPU)) for _ in range(number)]
        loop.loader.close()
        usual = seconds[1:]  # the first steps allocate
        wait = sum(loop.waits[1:]) / sum(loop_seconds for loop_seconds, _ in usual)
        results[f"data_wait_prefetch_{prefetch}"] = round(wait, 4)
        results[f"loop_over_bare_prefetch_{prefetch}"] = round(statistics.median(a / b for a, b in usual), 3)
        results["bare_step_seconds"] = round(statistics.median(b for _, b in usual), 4)
    return results


class _Loop:
    """The training loop, step by step."""

    def __init__(self, config: Config, root: Path, last: int, prefetch: int) -> None:
        model, settings = _loaded(config, root), config.train
        embeddings = Embeddings.open(root / EMBEDDINGS)
        data = TrainingData(model, root / DATASET, embeddings, settings, _mixture(config), config.seed, CPU)
        self._run = Run(model, data, settings, config.seed, config.hardware.micro_batch_size, SINGLE_PROCESS, prefetch)
        self._parameters = freeze(model, set(model.trainable()))
        set_training_mode(model)
        self._optimizer = build_optimizer(self._parameters, settings.betas, settings.weight_decay)
        self._guard, self._stop, self._next = SpikeGuard(), StopRequest(), 0
        self.loader = TimedLoader(data, config.hardware.micro_batch_size, SINGLE_PROCESS, range(1, last + 1), prefetch)
        self.waits: list[float] = []

    def step(self) -> None:
        """Run the next step."""
        self._next += 1
        before = self.loader.wait_seconds
        train_step(self._run, self.loader, self._parameters, self._optimizer, self._next, self._guard, self._stop)
        self.waits.append(self.loader.wait_seconds - before)


def _mixture(config: Config) -> Mixture:
    return build_mixture(
        {"reconstruction": 1.0, "text_to_image": 0.0, "understanding": 0.0}, config.train.global_batch_size
    )


def _loaded(config: Config, root: Path) -> UnifiedModel:
    base = base_folder(config.model.checkpoint, root)
    return load_base(config.model.family, base, config.model.load_options(root), CPU)


def _batch(model: UnifiedModel, config: Config, root: Path) -> BenchBatch:
    """Return the batch of the loop's first step."""
    embeddings = Embeddings.open(root / EMBEDDINGS)
    ids, seeds = embeddings.ids[: config.train.global_batch_size], list(range(config.train.global_batch_size))
    semantic, target = (
        Semantic.from_rows(embeddings.rows("semantic", ids)),
        Target.from_rows(embeddings.rows("target", ids)),
    )
    no_images = torch.zeros(len(ids), 0)
    return BenchBatch(
        choose_templates(seeds, config.train.prompt_templates), no_images, no_images, semantic, target, seeds
    )


def encoders(config: Config, root: Path) -> float:
    """Return the seconds of the two encoders over all images, in the stage's batches."""
    size = config.hardware.micro_batch_size
    bare = BareEncoders(_loaded(config, root).eval(), CPU, size)
    return time_call(lambda: bare.encode(-(-len(Embeddings.open(root / EMBEDDINGS).ids) // size)), CPU)


if __name__ == "__main__":
    main()
