"""One optimizer step: accumulate the gradients of L_total, check them, clip them, and move the weights."""

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from reca.config import TrainSection
from reca.models.base import Loss, UnifiedModel
from reca.runtime.distributed import SINGLE_PROCESS, DistributedContext
from reca.runtime.errors import UserError
from reca.runtime.seeding import derive_seed
from reca.runtime.signals import StopRequest
from reca.training.loader import LossBatches, MicroBatchLoader, TrainingData
from reca.training.losses import Kind, compute_loss

SPIKE_FACTOR = 10.0
"""A loss this many times the running median is a jump, not a bad batch: in the paper's settings losses move by
percents."""
SPIKE_WINDOW = 50
"""Steps of the running median."""
MIN_SPIKE_STEPS = 20
"""Steps before the median means anything."""


@dataclass(frozen=True)
class Run:
    """A model, its data and the recipe."""

    model: UnifiedModel
    data: TrainingData
    settings: TrainSection
    seed: int
    micro_batch_size: int
    """Samples per forward pass; changes memory and speed, and the result only by rounding."""
    distributed: DistributedContext = SINGLE_PROCESS
    prefetch: int = 0
    """Batches that are read ahead."""

    @property
    def autocast(self) -> torch.autocast:
        """Context of every forward pass.

        Without autocast's cache, which keeps the bfloat16 copy of every weight until the pass ends: of sharded
        parameters and recomputed blocks no device may hold all.
        """
        enabled = self.settings.precision == "bfloat16"
        return torch.autocast(self.data.device.type, torch.bfloat16, enabled=enabled, cache_enabled=False)


def train_step(
    run: Run,
    loader: MicroBatchLoader,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    step: int,
    guard: "SpikeGuard",
    stop: StopRequest,
) -> tuple[dict[str, float], bool]:
    """Take one optimizer step on L_total (:mod:`reca.training.losses`).

    Returns:
        The row of ``train.csv`` without the speed, and whether any rank was asked to stop.

    Raises:
        Diverged: The guard stops the run; the weights are still those of the step before.
    """
    loss_weights, settings, distributed = run.data.mixture.loss_weights, run.settings, run.distributed
    # peft draws the adapters' dropout from the global generator: a function of (seed, step), different on every rank.
    torch.manual_seed(derive_seed(run.seed, "train", step, *([distributed.rank] if distributed.rank else [])))
    optimizer.zero_grad(set_to_none=True)
    loss_of = partial(compute_loss, run.model, autocast=run.autocast)
    means, trained = dict[Kind, Tensor](), list(parameters.values())
    for kind, batches in loader.step(step).items():
        means[kind] = accumulate(run.model, trained, batches, loss_weights[kind], loss_of, distributed)
    norm = clip_gradients(parameters.values(), settings.max_grad_norm)
    stop_requests = distributed.all_reduce(norm.new_tensor(stop.signal_number is not None, dtype=torch.float64))
    # One device sync for all numbers of the step, because the guard must see them before the weights move.
    *values, grad_norm, stops = torch.stack([*means.values(), norm.double(), stop_requests]).tolist()
    losses = dict(zip(means, values, strict=True))
    loss = sum(loss_weights[kind] * value for kind, value in losses.items())
    guard.check(step, loss, grad_norm)
    decay_steps = settings.lr_decay_steps or settings.max_steps
    rate = learning_rate(
        step, settings.learning_rate, settings.lr_schedule, settings.warmup_steps, decay_steps, settings.min_lr_ratio
    )
    set_learning_rate(optimizer, rate)
    optimizer.step()
    row = {"step": step, "loss": loss, **{f"loss_{kind}": value for kind, value in losses.items()}}
    return row | {"learning_rate": rate, "grad_norm": grad_norm}, stops > 0


def accumulate(
    model: nn.Module,
    parameters: Sequence[nn.Parameter],
    batches: LossBatches | Sequence[Any],
    loss_weight: float,
    loss_of: Callable[[Any], Loss],
    distributed: DistributedContext = SINGLE_PROCESS,
) -> Tensor:
    """Add ``loss_weight`` times the gradient of the mean loss over all targets of all ranks' batches.

    The number of targets is known only after the last batch (answers differ in length, masks are random), so the
    gradients of the batches are summed apart from earlier ones and divided at the end. Over several ranks FSDP sums
    them in the backward pass (:mod:`reca.training.fsdp`); replicas only in that of the last batch, in one message.
    While FSDP has gathered a unit, ``model.parameters()`` are other objects, so the trained ones are given.

    Returns:
        The mean loss, float64 on the device, without a device sync.
    """
    if len(batches) == 1 and distributed.world_size == 1:
        for batch in batches:
            loss = loss_of(batch)
            (loss_weight * loss.value).backward()
        return loss.value.detach().double()
    previous_grads = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    sums = torch.zeros(2, dtype=torch.float64, device=parameters[0].device)
    first = parameters[0]
    is_replica = isinstance(first, DTensor) and first.device_mesh.shape[-1] == 1
    for number, batch in enumerate(batches, 1):
        if is_replica and isinstance(model, FSDPModule):  # not for shards, which would have to keep whole gradients
            model.set_requires_gradient_sync(number == len(batches))
        loss = loss_of(batch)
        (loss.value * loss.n_targets).backward()
        sums += loss.sums
    total, n_targets = distributed.all_reduce(sums)
    for parameter, previous_grad in zip(parameters, previous_grads, strict=True):
        if parameter.grad is None:
            parameter.grad = previous_grad
            continue
        parameter.grad *= loss_weight / n_targets
        if previous_grad is not None:
            parameter.grad += previous_grad
    return total / n_targets


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scale all gradients down so that their joint norm is at most ``max_norm``; returns the norm before, a scalar.

    With sharded parameters it is a collective, and the norm is that of the full gradients.
    """
    parameters = list(parameters)
    norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


def learning_rate(
    step: int,
    peak: float,
    schedule: Literal["constant", "cosine"],
    warmup_steps: int,
    max_steps: int,
    floor: float = 0.0,
) -> float:
    """Return the rate of a step, counted from 1: a linear warm-up to ``peak``, then constant or half a cosine.

    The cosine ends at step ``max_steps``, even if the run is shorter, at ``floor`` times the peak.
    """
    if step < warmup_steps:
        return peak * step / warmup_steps
    if schedule == "constant" or max_steps == warmup_steps:
        return peak
    progress = (step - warmup_steps) / (max_steps - warmup_steps)
    return peak * (floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the rate of all parameter groups."""
    for group in optimizer.param_groups:
        group["lr"] = rate


class Diverged(UserError):
    """The loss is not finite, or has jumped."""


class SpikeGuard:
    """Stops a run whose loss is not finite or jumps.

    Args:
        losses: The losses so far, when a run is resumed.
    """

    def __init__(self, losses: Sequence[float] = ()) -> None:
        self._losses: deque[float] = deque(losses, maxlen=SPIKE_WINDOW)

    def check(self, step: int, loss: float, grad_norm: float) -> None:
        """Check a step before the optimizer applies it.

        Raises:
            Diverged: NaN, infinity, or more than ``SPIKE_FACTOR`` times the running median.
        """
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise Diverged(f"step {step}: the loss is {loss} and the gradient norm {grad_norm}")
        if len(self._losses) >= MIN_SPIKE_STEPS and loss > SPIKE_FACTOR * (usual := median(self._losses)):
            raise Diverged(
                f"step {step}: the loss is {loss:.4g}, {loss / usual:.0f} times the median of the last "
                f"{len(self._losses)} steps"
            )
        self._losses.append(loss)
