"""Throughput of extraction relative to its encoders alone, at the published sizes.

    python -m bench.extraction --batches 6    # Janus-Pro-1B's encoders on two CPU cores: five minutes
    python -m bench.extraction --quick        # a smoke run

Measured are `extract`'s own encoder and writer over JPEGs of 640 x 480 in memory (decoding, resizing, encoding,
rounding, shards on disk with their digests), and the encoders alone over a batch on the device. Both run in float32 and
alternate, so that changes of the machine's speed affect both. Weights are random; the language model, which extraction
does not need, has a single layer where a family allows it. `bench.gpu` measures the same on a GPU.

    images_per_second   of extraction
    over_bare           the same, divided by the encoders' throughput; median of the repeats

JSON goes to bench/results/extraction.json. Run on an idle machine.
"""

import argparse
import io
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from bench.models import build
from bench.sizes import FAMILIES
from bench.steps import environment_info, time_call
from reca.data.images import decode
from reca.extraction.encoder import Encoder
from reca.extraction.writer import EmbeddingsWriter
from reca.models.base import UnifiedModel
from reca.runtime.files import write_json
from reca.runtime.seeding import SampleRng

RESULT = Path(__file__).parent / "results/extraction.json"
CPU = torch.device("cpu")
WIDTH, HEIGHT = 640, 480
FILES = 16
SHARD_IMAGES = 512
SECONDS = 4.0
"""Approximate duration of a repeat."""


class InMemoryImages:
    """JPEGs in memory with the interface of :class:`reca.data.images.ImageReader`."""

    def __init__(self) -> None:
        noise = np.random.default_rng(0).integers(0, 256, (FILES, HEIGHT // 16, WIDTH // 16, 3), dtype=np.uint8)
        self._files = [self._file(Image.fromarray(levels)) for levels in noise]

    @staticmethod
    def _file(coarse: Image.Image) -> bytes:
        file = io.BytesIO()
        coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        return file.getvalue()

    def size(self, _name: str) -> tuple[int, int]:
        """Return height and width in pixels."""
        return HEIGHT, WIDTH

    def load(self, name: str) -> Image.Image:
        """Decode an image."""
        return decode(self._files[int(name) % FILES])


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the answer, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=FAMILIES, default="janus")
    parser.add_argument("--size", choices=("tiny", "middle", "real"), default="real")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--batches", type=int, help="per repeat; default: some seconds, at least 4")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULT, help="file of the result")
    parser.add_argument("--quick", action="store_true", help="tiny, one repeat of two batches")
    options = parser.parse_args(arguments)
    if options.quick:
        options.size, options.repeats, options.batches = "tiny", 1, 2
    torch.manual_seed(0)
    model = build(options.family, options.size, CPU, 1 if options.family in ("bagel", "janus") else None)
    settings = {name: getattr(options, name) for name in ("family", "size", "batch_size", "repeats")}
    results = measure_extraction(model, CPU, options.batch_size, 0, options.repeats, options.batches)
    question = "how near does extraction come to its encoders alone?"
    write_json(options.output, {"question": question, **settings, **results, **environment_info()})
    print(", ".join(f"{name} {value}" for name, value in results.items()) + f"\nwritten: {options.output}")


def measure_extraction(
    model: UnifiedModel,
    device: torch.device,
    batch_size: int,
    prefetch: int,
    repeats: int,
    batches: int | None = None,
) -> dict[str, Any]:
    """Compare extraction with the bare encoders.

    Args:
        model: In evaluation mode and float32, on the device.
        device: The model's device.
        batch_size: Images per batch.
        prefetch: Batches that are prefetched, each by a thread.
        repeats: Repeats of both measurements, alternating.
        batches: Batches per repeat; ``None``: as many as take some seconds.
    """
    bare = BareEncoders(model, device, batch_size)
    encoder = Encoder(model, InMemoryImages(), device, batch_size, torch.float16, prefetch)
    bare.encode(1)  # kernels are selected and memory is allocated
    batches = batches or max(4, min(400, int(SECONDS / time_call(lambda: bare.encode(1), device))))
    names = [str(number) for number in range(batches * batch_size)]
    ratios, seconds = [], []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory(prefix="reca-extraction-") as folder:
            seconds.append(time_call(lambda: extract(encoder, names, Path(folder)), device))
        ratios.append(time_call(lambda: bare.encode(batches), device) / seconds[-1])
    return {
        "images": len(names),
        "images_per_second": round(len(names) / statistics.median(seconds), 2),
        "over_bare": round(statistics.median(ratios), 3),
        "all_over_bare": [round(ratio, 3) for ratio in ratios],
    }


class BareEncoders:
    """The encoders of a family's cacheable outputs, over noise on the device."""

    def __init__(self, model: UnifiedModel, device: torch.device, batch_size: int) -> None:
        self._model, self._rng, spec = model, SampleRng([0] * batch_size), model.spec
        sizes = (rule.size(HEIGHT, WIDTH) for rule in (spec.understanding, spec.generation))
        self._condition, self._target = (torch.rand(batch_size, 3, *size, device=device) * 2 - 1 for size in sizes)

    @torch.no_grad()
    def encode(self, batches: int) -> None:
        """Encode a number of batches, without waiting for a GPU."""
        for _ in range(batches):
            if "semantic" in self._model.cacheable:
                self._model.encode_semantic(self._condition)
            if "target" in self._model.cacheable:
                self._model.encode_target(self._target, self._rng)


def extract(encoder: Encoder, names: Sequence[str], folder: Path) -> None:
    """Encode and write shards as the stage does between opening the data set and writing the index."""
    with EmbeddingsWriter(folder) as writer:
        for number, start in enumerate(range(0, len(names), SHARD_IMAGES)):
            shard_names = names[start : start + SHARD_IMAGES]
            writer.write(number, shard_names, dict(encoder.rows(shard_names)))


if __name__ == "__main__":
    main()
