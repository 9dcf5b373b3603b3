"""The training loop: finite, resumable, and bit-equal on a CPU whether interrupted or not.

The ranks (:class:`reca.runtime.distributed.DistributedContext`) shard every step's samples and all-reduce their
gradients. The result does not depend on the world size, up to rounding, because data order and noise do not. Every
rank holds the whole model or a shard (:mod:`reca.training.fsdp`); rank 0 writes all files but the shards.
"""

import signal
import time
from collections.abc import Mapping
from typing import Any

import torch

from reca.runtime.code_digest import code_digest
from reca.runtime.progress import Progress
from reca.runtime.signals import Interrupted, StopRequest
from reca.training.checkpoint import CheckpointStore, TrainState, resume
from reca.training.loader import MicroBatchLoader
from reca.training.losses import Kind, compute_loss
from reca.training.metrics import TrainingCurves
from reca.training.optimizer import build_optimizer, freeze, set_training_mode
from reca.training.step import Diverged, Run, SpikeGuard, train_step


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
            row["images_per_second"] = sum(run.data.mixture.counts.values()) / (time.monotonic() - started)
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


@torch.no_grad()
def held_out_losses(run: Run, loader: MicroBatchLoader) -> dict[Kind, float]:
    """Return the mean losses over the held-out images, which the ranks share, with the same noise every time."""
    run.model.eval()
    losses: dict[Kind, float] = {}
    for kind, batches in loader.held_out().items():
        sums = torch.zeros(2, dtype=torch.float64, device=run.data.device)
        for batch in batches:
            sums += compute_loss(run.model, batch, run.autocast).sums
        total, n_targets = run.distributed.all_reduce(sums).tolist()
        losses[kind] = total / n_targets
    set_training_mode(run.model)
    return losses
