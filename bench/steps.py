"""A training step on L_RecA over random images, as in the training loop; shared by the timing benches."""

import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from reca.models.base import Semantic, Target, UnifiedModel
from reca.runtime.seeding import SampleRng
from reca.training.losses import choose_templates
from reca.training.optimizer import build_optimizer, freeze, set_training_mode
from reca.training.step import set_learning_rate


@dataclass(frozen=True)
class BenchBatch:
    """Images at a model's input sizes, and their outputs of ``extract``."""

    prompts: list[str]
    condition: Tensor
    """(B, 3, S, S) for the understanding encoder."""
    images: Tensor
    """(B, 3, S, S) for the image tokenizer."""
    semantic: Semantic
    target: Target
    seeds: list[int]


@torch.no_grad()
def make_batch(model: UnifiedModel, size: int, device: torch.device) -> BenchBatch:
    """Make a batch of noise images; encoding one image at a time bounds the memory."""
    generator = torch.Generator().manual_seed(0)
    shapes = (size, 3, model.spec.understanding_size), (size, 3, model.spec.generation_size)
    condition, images = (torch.rand(*shape, shape[-1], generator=generator).to(device) * 2 - 1 for shape in shapes)
    semantic = torch.cat([model.encode_semantic(image[None]).embeds for image in condition])
    target = torch.cat([model.encode_target(image[None], SampleRng([0])).values for image in images])
    seeds = list(range(size))
    return BenchBatch(choose_templates(seeds), condition, images, Semantic(semantic), Target(target), seeds)


def encode_inputs(model: UnifiedModel, batch: BenchBatch, cached: bool) -> tuple[Semantic, Target]:
    """Return the inputs of L_RecA: cacheable ones from the batch if ``cached``, others encoded now."""
    semantic, target = batch.semantic, batch.target
    if not cached or "semantic" not in model.cacheable:
        semantic = model.encode_semantic(batch.condition, SampleRng(batch.seeds))
    if not cached or "target" not in model.cacheable:
        target = model.encode_target(batch.images, SampleRng(batch.seeds))
    return semantic, target


class Trainer:
    """A model in training mode with its optimizer.

    Args:
        model: Its trained parameters are float32.
        autocast_bf16: Compute the loss under bfloat16 autocast; images are encoded outside, as in the loop.
    """

    def __init__(self, model: UnifiedModel, autocast_bf16: bool) -> None:
        self.model, self._autocast_bf16 = model, autocast_bf16
        self._parameters = freeze(model, set(model.trainable()))
        set_training_mode(model)
        self._optimizer = build_optimizer(self._parameters, (0.9, 0.95), 0.02, no_weight_decay=model.no_weight_decay)
        set_learning_rate(self._optimizer, 1e-6)

    @property
    def trained(self) -> int:
        """Number of trained parameters."""
        return sum(parameter.numel() for parameter in self._parameters.values())

    def step(self, batch: BenchBatch, cached: bool = True) -> float:
        """Run forward, backward, clipping and AdamW; return the loss, which synchronises the device."""
        self._optimizer.zero_grad(set_to_none=True)
        semantic, target = encode_inputs(self.model, batch, cached)
        with torch.autocast(batch.condition.device.type, torch.bfloat16, enabled=self._autocast_bf16):
            loss = self.model.reconstruction_loss(semantic, batch.prompts, target, SampleRng(batch.seeds)).value
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._parameters.values(), 1.0)
        self._optimizer.step()
        return float(loss.detach())


def time_call(work: Callable[[], object], device: torch.device) -> float:
    """Return the wall seconds of a call, to the end of its last kernel."""
    _wait(device)
    start = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - start


@contextmanager
def stopwatch(owner: Any, name: str) -> Iterator[list[float]]:
    """Time a function of a module or class during the block; the yielded list contains its total seconds."""
    original, seconds = getattr(owner, name), [0.0]

    def timed(*arguments: Any, **options: Any) -> Any:
        start = time.perf_counter()
        try:
            return original(*arguments, **options)
        finally:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[0] += time.perf_counter() - start

    setattr(owner, name, timed)
    try:
        yield seconds
    finally:
        setattr(owner, name, original)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def environment_info() -> dict[str, Any]:
    """Describe the machine and the software, without paths."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "cuda": torch.version.cuda,
        "command": shlex.join(["python", "-m", *_module(), *map(_without_folder, sys.argv[1:])]),
    }


def _module() -> list[str]:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return [spec.name] if spec else []


def _without_folder(word: str) -> str:
    return Path(word).name if Path(word).is_absolute() else word
