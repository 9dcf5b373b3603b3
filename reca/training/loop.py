"""The loop: finite, resumable, bit-equal whether interrupted or not.

The ranks (:class:`reca.runtime.distributed.DistributedContext`) shard every step's samples and all-reduce their
gradients. The result does not depend on the world size, up to rounding, because data order and noise do not. Every
rank holds the whole model or a shard (:mod:`reca.training.fsdp`); rank 0 writes what is not sharded.
"""

import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from reca.config import TrainSection
from reca.models.base import Loss, UnifiedModel
from reca.runtime.code_digest import code_digest
from reca.runtime.distributed import SINGLE_PROCESS, DistributedContext, Interrupted, StopRequest
from reca.runtime.errors import UserError
from reca.runtime.progress import Progress
from reca.runtime.seeding import derive_seed
from reca.training import metrics as monitor
from reca.training.batches import MicroBatchLoader
from reca.training.checkpoint import CheckpointStore, restore
from reca.training.curves import Curves
from reca.training.loader import Samples
from reca.training.mixture import Kind
from reca.training.optimizer import (
    build_optimizer,
    clip_gradients,
    freeze,
    learning_rate,
    set_learning_rate,
    set_training_mode,
)

Part = TypeVar("Part")


@dataclass
class TrainState:
    """How the run went, over all its interruptions; saved with every checkpoint."""

    seconds: float = 0.0
    """Wall time spent in steps, held-out measurements included."""
    resumed_after: list[int] = field(default_factory=list)
    code: list[list[Any]] = field(default_factory=list)
    """[first step, digest of the code that trained from there], one entry unless the code was edited in between."""


@dataclass(frozen=True)
class Run:
    """What is trained, on what, and how."""

    model: UnifiedModel
    samples: Samples
    settings: TrainSection
    seed: int
    micro_batch_size: int
    """Samples per forward pass; changes memory and speed, not the result."""
    distributed: DistributedContext = SINGLE_PROCESS
    prefetch: int = 0
    """Micro-batches whose samples are read before they are due."""


def train_model(run: Run, store: CheckpointStore, params: Mapping[str, Any], stop: StopRequest) -> TrainState:
    """Train to ``max_steps``, from the last whole checkpoint if there is one; the model is changed in place.

    Args:
        run: The base model, its samples and the recipe.
        store: Where checkpoints and curves lie; the leading process holds its lock.
        params: Configuration sections to be written beside every checkpoint.
        stop: Asked after every step.

    Raises:
        Diverged: The loss is not finite or has jumped.
        UserError: A checkpoint or curve cannot be written.
        Interrupted: The run was told to end; its last step is saved.
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
    done, record = resume(store, parameters, optimizer, settings.max_steps, code, distributed)
    if done == settings.max_steps:
        print(f"all {done} steps are done already, in {store.path(done)}", flush=True)
        return record
    curves = Curves(store.folder / "curves", done, distributed)
    passes = MicroBatchLoader(
        run.samples, run.micro_batch_size, distributed, range(done + 1, settings.max_steps + 1), run.prefetch
    )
    progress = Progress(settings.max_steps, "steps", start=done)
    try:
        if not done:
            curves.held_out(0, held_out_losses(run, passes))
        for step in range(done + 1, settings.max_steps + 1):
            began = time.monotonic()
            row, told = take_step(run, passes, parameters, optimizer, step, curves.guard, stop)
            row["images_per_second"] = run.samples.per_step / (time.monotonic() - began)
            curves.train(row)
            if step % settings.eval_every == 0 or step == settings.max_steps:
                curves.held_out(step, held_out_losses(run, passes))
            record.seconds += time.monotonic() - began
            if distributed.world_size == 1:  # nobody to agree with: what was noted since then counts as well
                told = stop.signal_number is not None
            if told or step % settings.save_every == 0 or step == settings.max_steps:
                curves.sync()
                store.save(step, parameters, optimizer, params, vars(record), distributed)
            progress.update(step, f"loss {row['loss']:.4g}, {row['images_per_second']:.0f} images/s")
            if told:
                distributed.barrier()  # an early exit makes the launcher end rank 0 while it saves
                number = stop.signal_number or signal.SIGTERM  # perhaps another process alone was told
                print(f"told to end (signal {number:d}); saved as {store.path(step)}", flush=True)
                raise Interrupted(number)
    except monitor.Diverged as error:
        kept = store.steps()
        where = f"the last good checkpoint is {store.path(kept[-1])}" if kept else "no checkpoint had been saved yet"
        raise monitor.Diverged(
            f"training stopped at {error} ({where}). The same settings meet the same step again: lower "
            f"train.learning_rate={settings.learning_rate:g} or train.max_grad_norm={settings.max_grad_norm:g}"
        ) from None
    finally:
        passes.close()
        curves.close()
    return record


def resume(
    store: CheckpointStore,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    max_steps: int,
    code: str,
    distributed: DistributedContext = SINGLE_PROCESS,
) -> tuple[int, TrainState]:
    """Put the last whole checkpoint in place, on every process; returns its step, or 0.

    A finished run of other code is not taken for the result of this code; an unfinished one is continued, because
    who mends a bug wants to keep the steps, and its record says so.

    Raises:
        UserError: The checkpoint does not fit the model, or the processes do not see the same one.
    """
    if distributed.is_main_process:
        store.clean()
    distributed.barrier()
    checkpoint = store.latest()
    found = checkpoint.step if checkpoint is not None else 0
    if distributed.all_reduce_sum([found]) != [
        found * distributed.world_size
    ]:  # also: nothing is removed before all have read
        raise UserError(f"the processes find different checkpoints in {store.folder}; paths.state must be shared")
    if checkpoint is not None and checkpoint.step >= max_steps and checkpoint.facts["code"][-1][1] != code:
        print(f"{store.path(checkpoint.step)} is finished, but by other code: training anew", flush=True)
        checkpoint = None
    if checkpoint is not None:
        restore(checkpoint, parameters, optimizer, store.path(checkpoint.step))
    if distributed.is_main_process:
        store.remove(beyond=checkpoint.step if checkpoint is not None else -1)
    if checkpoint is None:
        return 0, TrainState(code=[[1, code]])
    record = TrainState(**checkpoint.facts)
    if checkpoint.step < max_steps:
        print(f"resuming after step {checkpoint.step} from {store.path(checkpoint.step)}", flush=True)
        record.resumed_after.append(checkpoint.step)
        if record.code[-1][1] != code:
            print("WARNING the code of training has changed since that checkpoint was written", flush=True)
            record.code.append([checkpoint.step + 1, code])
    return checkpoint.step, record


def take_step(
    run: Run,
    passes: MicroBatchLoader,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    step: int,
    guard: monitor.SpikeGuard,
    stop: StopRequest,
) -> tuple[dict[str, float], bool]:
    """One optimizer step; returns its row of ``train.csv`` but for the speed, and whether any process was told to end.

    Raises:
        Diverged: The guard stops the run; the weights are still those of the step before.
    """
    shares, settings, distributed = run.samples.mixture.shares, run.settings, run.distributed
    # For adapters' dropout, which peft draws from here: a function of (seed, step), and not the same on every process.
    torch.manual_seed(
        derive_seed(run.seed, "train", step, *([] if distributed.is_main_process else [distributed.rank]))
    )
    optimizer.zero_grad(set_to_none=True)
    losses: dict[Kind, Tensor] = {}
    for kind, parts in passes.step(step).items():
        losses[kind] = accumulate(list(parameters.values()), parts, shares[kind], passes.loss, distributed)
    told = distributed.all_reduce_gradients(list(parameters.values()), stop.signal_number is not None)
    norm = clip_gradients(parameters.values(), settings.max_grad_norm)
    # Here the CPU waits for the device, for all numbers at once: the guard sees them before the weights move.
    *means, grad_norm = torch.stack([*losses.values(), norm.double()]).tolist()
    found = dict(zip(losses, means, strict=True))
    loss = sum(shares[kind] * value for kind, value in found.items())
    guard.check(step, loss, grad_norm)
    end = settings.lr_decay_steps or settings.max_steps
    rate = learning_rate(
        step, settings.learning_rate, settings.lr_schedule, settings.warmup_steps, end, settings.min_lr_ratio
    )
    set_learning_rate(optimizer, rate)
    optimizer.step()
    parts_of_loss = {f"loss_{kind}": value for kind, value in found.items()}
    return {"step": step, "loss": loss, **parts_of_loss, "learning_rate": rate, "grad_norm": grad_norm}, told


def accumulate(
    parameters: Sequence[nn.Parameter],
    parts: Sequence[Part],
    share: float,
    loss_of: Callable[[Part], Loss],
    distributed: DistributedContext = SINGLE_PROCESS,
) -> Tensor:
    """Add ``share`` times the gradient of the mean loss over all targets of all processes' parts.

    How many targets there are in all is known only after the last part (answers differ in length, masks are drawn),
    so the parts are summed unweighted beside what the gradients held before, and divided at the end. A process, which
    may have no part, adds its own summands only: :meth:`DistributedContext.all_reduce_gradients` completes
    the sum, for all kinds at once.

    Returns:
        That mean, a float64 on the device; nothing here waits for it.
    """
    if len(parts) == 1 and distributed.world_size == 1:
        loss = loss_of(parts[0])
        (share * loss.value).backward()
        return loss.value.detach().double()
    held = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    sums = torch.zeros(2, dtype=torch.float64, device=parameters[0].device)
    for part in parts:
        loss = loss_of(part)
        (loss.value * loss.n_targets).backward()
        sums += loss.sums
    total, all_targets = distributed.all_reduce_(sums)
    for parameter, before in zip(parameters, held, strict=True):
        if parameter.grad is None:
            parameter.grad = before
            continue
        parameter.grad *= share / all_targets
        if before is not None:
            parameter.grad += before
    return total / all_targets


@torch.no_grad()
def held_out_losses(run: Run, passes: MicroBatchLoader) -> dict[Kind, float]:
    """The mean losses over the held-out images, with the same noise every time.

    The processes share the images: each would wait for the leading one otherwise.
    """
    run.model.eval()
    found: dict[Kind, float] = {}
    for kind, parts in passes.held_out().items():
        nothing = torch.zeros(2, dtype=torch.float64, device=next(run.model.parameters()).device)
        sums = sum((passes.loss(part).sums for part in parts), nothing)
        total, all_targets = run.distributed.all_reduce_(sums).tolist()
        found[kind] = total / all_targets
    set_training_mode(run.model)
    return found
