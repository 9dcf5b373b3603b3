"""One step of training on L_RecA, as the loop takes it, over random images; shared by the files that time it."""

import os
import platform
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from reca.models.base import Semantic, Target, UnifiedModel
from reca.models.prompts import choose_templates
from reca.runtime.seeding import SampleRng
from reca.training.optimizer import build_optimizer, freeze, set_learning_rate, set_training_mode


@dataclass(frozen=True)
class Batch:
    """Images as a model wants them, and what ``extract`` would have stored of them."""

    prompts: list[str]
    seen: Tensor
    """(B, 3, S, S) for the understanding encoder."""
    drawn: Tensor
    """(B, 3, S, S) for the image tokenizer."""
    semantic: Semantic
    target: Target
    seeds: list[int]


@torch.no_grad()
def make_batch(model: UnifiedModel, size: int, device: torch.device) -> Batch:
    """A batch of noise images; targets and embeddings are made one image at a time, which bounds their memory."""
    generator = torch.Generator().manual_seed(0)
    shapes = (size, 3, model.spec.understanding_size), (size, 3, model.spec.generation_size)
    seen, drawn = (torch.rand(*shape, shape[-1], generator=generator).to(device) * 2 - 1 for shape in shapes)
    semantic = torch.cat([model.encode_semantic(image[None]).embeds for image in seen])
    target = torch.cat([model.encode_target(image[None], SampleRng([0])).values for image in drawn])
    seeds = list(range(size))
    return Batch(choose_templates(seeds), seen, drawn, Semantic(semantic), Target(target), seeds)


def encoded(model: UnifiedModel, batch: Batch, cached: bool) -> tuple[Semantic, Target]:
    """What L_RecA is computed from: what may be cached taken from the batch, or everything encoded anew."""
    semantic, target = batch.semantic, batch.target
    if not cached or "semantic" not in model.cacheable:
        semantic = model.encode_semantic(batch.seen, SampleRng(batch.seeds))
    if not cached or "target" not in model.cacheable:
        target = model.encode_target(batch.drawn, SampleRng(batch.seeds))
    return semantic, target


class Trainer:
    """A model in training mode with its optimizer.

    Args:
        model: Its trained parameters are float32.
        lower: Compute the loss under bfloat16 autocast; images are encoded as they are, as in the loop.
    """

    def __init__(self, model: UnifiedModel, lower: bool) -> None:
        self.model, self._lower = model, lower
        self._parameters = freeze(model, set(model.trainable()))
        set_training_mode(model)
        self._optimizer = build_optimizer(self._parameters, (0.9, 0.95), 0.02, no_weight_decay=model.no_weight_decay)
        set_learning_rate(self._optimizer, 1e-6)

    @property
    def trained(self) -> int:
        """Numbers that are trained."""
        return sum(parameter.numel() for parameter in self._parameters.values())

    def step(self, batch: Batch, cached: bool = True) -> float:
        """Forward, backward, clipping, AdamW; returns the loss, hence waits for the device."""
        self._optimizer.zero_grad(set_to_none=True)
        semantic, target = encoded(self.model, batch, cached)
        with torch.autocast(batch.seen.device.type, torch.bfloat16, enabled=self._lower):
            loss = self.model.reconstruction_loss(semantic, batch.prompts, target, SampleRng(batch.seeds)).value
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._parameters.values(), 1.0)
        self._optimizer.step()
        return float(loss.detach())


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Wall seconds of one call, to the end of its last kernel."""
    _wait(device)
    began = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def surroundings() -> dict[str, Any]:
    """Where something was measured; no paths."""
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
