"""What do the loop and the stage cost beyond the model: overhead of a step, waiting for data, extraction?

    python -m bench.loop            # a Janus of some 30 million parameters, and the tiny one
    python -m bench.loop --quick    # a smoke run: tiny, a few steps; its numbers mean nothing

L_RecA alone on rendered scenes, from the extract cache, float32 on the CPU; weights are random.

    loop_over_bare        seconds of a step of the training loop (reading, seeds, guard, curves left out) over those of
                          forward, backward, clipping and AdamW on a batch that is there already
    data_wait             share of the loop's steps that is spent waiting for what is read, when each pass is read when
                          it is due, and when two are read ahead
    extract_over_bare     images a second of the stage `extract` (decoding, encoding, writing, digests) over those of
                          the two encoders alone; loading the weights is taken off; the median of three

Loop and bare steps are taken in turn, one of each, so that the machine's moods hit both; reported are medians.
JSON goes to bench/results/loop.json. Run it on an idle machine.
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

from bench.extraction import Bare
from bench.models import build
from bench.steps import Batch, Trainer, seconds_of, surroundings
from reca.config import ROOT, Config, compose
from reca.data.embeddings import Embeddings
from reca.models.base import Semantic, Target, UnifiedModel
from reca.models.loading import base_folder, load_base, load_encoders
from reca.models.prompts import choose_templates
from reca.runtime.distributed import SINGLE_PROCESS, StopRequest, configure_device
from reca.runtime.files import write_json
from reca.stages.extract import DATASET, EMBEDDINGS, extract
from reca.stages.ingest import ingest
from reca.training.loader import MicroBatch, MicroBatchLoader, TrainingData
from reca.training.loop import Run, train_step
from reca.training.losses import Mixture, TrainingBatch, build_mixture
from reca.training.metrics import SpikeGuard
from reca.training.optimizer import build_optimizer, freeze, set_training_mode

RESULT = Path(__file__).parent / "results/loop.json"
CPU = torch.device("cpu")


class TimedLoader(MicroBatchLoader):
    """Adds up the seconds in which the loop waited for batches."""

    waited = 0.0

    def load(self, micro_batch: MicroBatch) -> TrainingBatch:
        """Load a batch and add its seconds."""
        began = time.perf_counter()
        batch = super().load(micro_batch)
        self.waited += time.perf_counter() - began
        return batch


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the answer, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=("tiny", "middle"), default=["tiny", "middle"])
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--extractions", type=int, default=3, help="how often extraction is measured")
    parser.add_argument("--output", type=Path, default=RESULT, help="where the answer goes")
    parser.add_argument("--quick", action="store_true", help="tiny, 64 images, 3 steps of 4")
    options = parser.parse_args(arguments)
    if options.quick:
        options.sizes, options.images, options.steps, options.batch_size = ["tiny"], 64, 3, 4
        options.extractions = 1
    threads, found = torch.get_num_threads(), {}
    for size in options.sizes:
        with tempfile.TemporaryDirectory(prefix="reca-loop-") as folder:
            found[size] = measure(size, Path(folder), options, threads)
        print(f"{size}: " + ", ".join(f"{name} {value}" for name, value in found[size].items()), flush=True)
    question = "what do the loop and the stage cost beyond the model?"
    settings = {"images": options.images, "steps": options.steps, "batch_size": options.batch_size}
    write_json(options.output, {"question": question, **settings, "sizes": found, **surroundings()})
    print(f"written: {options.output}")


def measure(size: str, root: Path, options: argparse.Namespace, threads: int) -> dict[str, Any]:
    """All three answers for one size."""
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
    base, load_options = base_folder(config.model.checkpoint, root), config.model.load_options(root)
    ratios = []
    for _ in range(options.extractions):
        shutil.rmtree(root / config.paths.state, ignore_errors=True)
        loading = seconds_of(partial(load_encoders, config.model.family, base, load_options, CPU), CPU)
        with redirect_stdout(StringIO()):
            staged = seconds_of(lambda: extract(config, root), CPU) - loading
        ratios.append(round(encoders(config, root) / staged, 3))
    found = {"extract_over_bare": statistics.median(ratios), "all_extract_over_bare": ratios}
    return {**steps(config, root, options.steps), **found}


def steps(config: Config, root: Path, number: int) -> dict[str, Any]:
    """Steps of the loop beside bare ones, without and with reading ahead."""
    found: dict[str, Any] = {}
    for ahead in (0, 2):
        loop, bare = _Loop(config, root, number, ahead), Trainer(_loaded(config, root), lower=False)
        once = partial(bare.step, _batch(bare.model, config, root))
        seconds = [(seconds_of(loop.step, CPU), seconds_of(once, CPU)) for _ in range(number)]
        loop.loader.close()
        usual = seconds[1:]  # the first ones allocate
        waited = sum(loop.waits[1:]) / sum(one for one, _ in usual)
        found[f"data_wait_read_ahead_{ahead}"] = round(waited, 4)
        found[f"loop_over_bare_read_ahead_{ahead}"] = round(statistics.median(a / b for a, b in usual), 3)
        found["bare_step_seconds"] = round(statistics.median(b for _, b in usual), 4)
    return found


class _Loop:
    """The training loop, step by step."""

    def __init__(self, config: Config, root: Path, last: int, ahead: int) -> None:
        model, settings = _loaded(config, root), config.train
        embeddings = Embeddings.open(root / EMBEDDINGS)
        data = TrainingData(model, root / DATASET, embeddings, settings, _mixture(config), config.seed, CPU)
        self._run = Run(model, data, settings, config.seed, config.hardware.micro_batch_size, SINGLE_PROCESS, ahead)
        self._parameters = freeze(model, set(model.trainable()))
        set_training_mode(model)
        self._optimizer = build_optimizer(self._parameters, settings.betas, settings.weight_decay)
        self._guard, self._stop, self._next = SpikeGuard(), StopRequest(), 0
        self.loader = TimedLoader(data, config.hardware.micro_batch_size, SINGLE_PROCESS, range(1, last + 1), ahead)
        self.waits: list[float] = []

    def step(self) -> None:
        """The next one."""
        self._next += 1
        before = self.loader.waited
        train_step(self._run, self.loader, self._parameters, self._optimizer, self._next, self._guard, self._stop)
        self.waits.append(self.loader.waited - before)


def _mixture(config: Config) -> Mixture:
    return build_mixture(
        {"reconstruction": 1.0, "text_to_image": 0.0, "understanding": 0.0}, config.train.global_batch_size
    )


def _loaded(config: Config, root: Path) -> UnifiedModel:
    base = base_folder(config.model.checkpoint, root)
    return load_base(config.model.family, base, config.model.load_options(root), CPU)


def _batch(model: UnifiedModel, config: Config, root: Path) -> Batch:
    """What the loop's first step reads, as a batch that is there already."""
    embeddings = Embeddings.open(root / EMBEDDINGS)
    ids, seeds = embeddings.ids[: config.train.global_batch_size], list(range(config.train.global_batch_size))
    semantic, target = (
        Semantic.from_rows(embeddings.rows("semantic", ids)),
        Target.from_rows(embeddings.rows("target", ids)),
    )
    nothing = torch.zeros(len(ids), 0)
    return Batch(choose_templates(seeds, config.train.prompt_templates), nothing, nothing, semantic, target, seeds)


def encoders(config: Config, root: Path) -> float:
    """Seconds of the two encoders over as many images as there are, in the stage's batches."""
    size = config.hardware.micro_batch_size
    bare = Bare(_loaded(config, root).eval(), CPU, size)
    return seconds_of(lambda: bare.encode(-(-len(Embeddings.open(root / EMBEDDINGS).ids) // size)), CPU)


if __name__ == "__main__":
    main()
