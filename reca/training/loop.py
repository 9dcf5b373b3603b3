"""The training loop: finite, resumable, and bit-equal on a CPU whether interrupted or not.

The ranks (:class:`reca.runtime.distributed.DistributedContext`) shard every step's samples and all-reduce their
gradients. The result does not depend on the world size, up to rounding, because data order and noise do not. Every
rank holds the whole model or a shard (:mod:`reca.training.fsdp`); rank 0 writes all files but the shards.
"""

import math
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from reca.config import TrainSection
from reca.models.base import Loss, UnifiedModel
from reca.runtime.code_digest import code_digest
from reca.runtime.distributed import SINGLE_PROCESS, DistributedContext
from reca.runtime.errors import UserError
from reca.runtime.progress import Progress
from reca.runtime.seeding import derive_seed
from reca.runtime.signals import Interrupted, StopRequest
from reca.training.checkpoint import CheckpointStore, TrainState, resume
from reca.training.loader import MicroBatchLoader, TrainingData
from reca.training.losses import Kind, compute_loss
from reca.training.metrics import TrainingCurves
from reca.training.optimizer import (
    build_optimizer,
    clip_gradients,
    freeze,
    learning_rate,
    set_learning_rate,
    set_training_mode,
)

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


Item = TypeVar("Item", covariant=True)


class SizedIterable(Protocol[Item]):
    """Anything with a length that can be iterated over once."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Item]: ...


def train_model(run: Run, store: CheckpointStore, params: Mapping[str, Any], stop: StopRequest) -> TrainState:
    """Train to ``max_steps``, from the last valid checkpoint if there is one; the model is changed in place.

    Args:
        run: The base model, its data and the recipe.
        store: Checkpoints and curves; rank 0 holds its lock.
        params: Configuration sections to be saved with every checkpoint, for people.
        stop: Checked after every step.

    Raises:
        Diverged: The loss is not finite or has jumped.
        UserError: A checkpoint or curve cannot be written.
        Interrupted: A signal asked for a stop; the last step is saved.
    """
    settings, distributed = run.settings, run.distributed
    parameters = freeze(run.model, set(run.model.trainable()))
    set_training_mode(run.model)
    optimizer = build_optimizer(
        parameters,
        settings.betas,
        settings.weight_decay,
        settings.eps,
        run.model.no_weight_decay,
        settings.optimizer_state_dtype,
    )
    code = code_digest("train", family=run.model.family)
    last_step, state = resume(store, parameters, optimizer, settings.max_steps, code, distributed)
    if last_step == settings.max_steps:
        print(f"all {last_step} steps are done already, in {store.path(last_step)}", flush=True)
        return state
    curves = TrainingCurves(store.folder / "curves", last_step, distributed)
    guard = SpikeGuard(curves.losses)
    steps = range(last_step + 1, settings.max_steps + 1)
    loader = MicroBatchLoader(run.data, run.micro_batch_size, distributed, steps, run.prefetch)
    progress = Progress(settings.max_steps, "steps", start=last_step)
    try:
        if not last_step:
            curves.held_out(0, held_out_losses(run, loader))
        for step in steps:
            started = time.monotonic()
            row, stop_requested = train_step(run, loader, parameters, optimizer, step, guard, stop)
            row["images_per_second"] = run.data.samples_per_step / (time.monotonic() - started)
            curves.train(row)
            if step % settings.eval_every == 0 or step == settings.max_steps:
                curves.held_out(step, held_out_losses(run, loader))
            state.seconds += time.monotonic() - started
            if distributed.world_size == 1:  # no rank to agree with: a signal since the step's all-reduce counts too
                stop_requested = stop.signal_number is not None
            if stop_requested or step % settings.save_every == 0 or step == settings.max_steps:
                curves.sync()
                store.save(step, parameters, optimizer, params, vars(state), distributed)
            progress.update(step, f"loss {row['loss']:.4g}, {row['images_per_second']:.0f} images/s")
            if stop_requested:
                distributed.barrier()  # a rank that exits early makes the launcher end rank 0 while it saves
                number = stop.signal_number or signal.SIGTERM  # only another rank may have received it
                print(f"stopped by signal {number:d}; saved as {store.path(step)}", flush=True)
                raise Interrupted(number)
    except Diverged as error:
        saved = store.steps()
        where = f"the last good checkpoint is {store.path(saved[-1])}" if saved else "no checkpoint had been saved yet"
        raise Diverged(
            f"training stopped at {error} ({where}). The same settings meet the same step again: lower "
            f"train.learning_rate={settings.learning_rate:g} or train.max_grad_norm={settings.max_grad_norm:g}"
        ) from None
    finally:
        loader.close()
        curves.close()
    return state


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
    means: dict[Kind, Tensor] = {}
    for kind, batches in loader.step(step).items():
        means[kind] = accumulate(list(parameters.values()), batches, loss_weights[kind], loss_of, distributed)
    stop_requested = distributed.all_reduce_gradients(list(parameters.values()), stop.signal_number is not None)
    norm = clip_gradients(parameters.values(), settings.max_grad_norm)
    # One device sync for all numbers of the step, because the guard must see them before the weights move.
    *values, grad_norm = torch.stack([*means.values(), norm.double()]).tolist()
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
    return row | {"learning_rate": rate, "grad_norm": grad_norm}, stop_requested


def accumulate(
    parameters: Sequence[nn.Parameter],
    batches: SizedIterable[Item],
    loss_weight: float,
    loss_of: Callable[[Item], Loss],
    distributed: DistributedContext = SINGLE_PROCESS,
) -> Tensor:
    """Add ``loss_weight`` times the gradient of the mean loss over all targets of all ranks' batches.

    The number of targets is known only after the last batch (answers differ in length, masks are random), so the
    gradients of the batches are summed apart from earlier ones and divided at the end. A rank, which may have no
    batch, adds its own summands only: :meth:`DistributedContext.all_reduce_gradients` completes the sum, for all
    losses at once.

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
    for batch in batches:
        loss = loss_of(batch)
        (loss.value * loss.n_targets).backward()
        sums += loss.sums
    total, n_targets = distributed.all_reduce_(sums)
    for parameter, previous_grad in zip(parameters, previous_grads, strict=True):
        if parameter.grad is None:
            parameter.grad = previous_grad
            continue
        parameter.grad *= loss_weight / n_targets
        if previous_grad is not None:
            parameter.grad += previous_grad
    return total / n_targets


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


@torch.no_grad()
def held_out_losses(run: Run, loader: MicroBatchLoader) -> dict[Kind, float]:
    """Return the mean losses over the held-out images, which the ranks share, with the same noise every time."""
    run.model.eval()
    losses: dict[Kind, float] = {}
    for kind, batches in loader.held_out().items():
        sums = torch.zeros(2, dtype=torch.float64, device=run.data.device)
        for batch in batches:
            sums += compute_loss(run.model, batch, run.autocast).sums
        total, n_targets = run.distributed.all_reduce_(sums).tolist()
        losses[kind] = total / n_targets
    set_training_mode(run.model)
    return losses
