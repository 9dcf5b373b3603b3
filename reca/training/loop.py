"""The loop: finite, resumable, bit-equal whether interrupted or not.

One process. For several, accelerate (a later issue) takes every rank's part of ``samples.step`` in
:func:`take_step`; nothing else depends on the number of processes, because order and noise do not.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from reca.config import TrainSection
from reca.models.base import Loss, UnifiedModel
from reca.nn.random import derive_seed
from reca.objectives.mixture import Kind
from reca.progress import Progress
from reca.training import monitor
from reca.training.checkpoint import CheckpointStore, restore
from reca.training.code import code_digest
from reca.training.optimizer import build_optimizer, freeze, learning_rate, set_learning_rate, set_training_mode
from reca.training.process import Interrupted, StopRequest
from reca.training.samples import Samples
from reca.training.storage import explained

Part = TypeVar("Part")


@dataclass
class Record:
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


def train_model(run: Run, store: CheckpointStore, params: Mapping[str, Any], stop: StopRequest) -> Record:
    """Train to ``max_steps``, from the last whole checkpoint if there is one; the model is changed in place.

    Args:
        run: The base model, its samples and the recipe.
        store: Where checkpoints and curves lie; the caller holds its lock.
        params: Configuration sections to be written beside every checkpoint.
        stop: Asked after every step.

    Raises:
        Diverged: The loss is not finite or has jumped.
        UserError: A checkpoint or curve cannot be written.
        Interrupted: The run was told to end; its last step is saved.
    """
    settings = run.settings
    parameters = freeze(run.model, set(run.model.trainable()))
    set_training_mode(run.model)
    optimizer = build_optimizer(parameters, settings.betas, settings.weight_decay, settings.eps, run.model.undecayed)
    done, record = resume(store, parameters, optimizer, settings.max_steps)
    if done == settings.max_steps:
        print(f"all {done} steps are done already, in {store.path(done)}", flush=True)
        return record
    curves = Curves(store.folder / "curves", done)
    progress = Progress(settings.max_steps, "steps", start=done)
    try:
        if not done:
            curves.measure(run, 0)
        for step in range(done + 1, settings.max_steps + 1):
            began = time.monotonic()
            row = take_step(run, parameters, optimizer, step, curves.guard)
            row["images_per_second"] = run.samples.per_step / (time.monotonic() - began)
            curves.train(row)
            if step % settings.eval_every == 0 or step == settings.max_steps:
                curves.measure(run, step)
            record.seconds += time.monotonic() - began
            if step % settings.save_every == 0 or step == settings.max_steps or stop.signal_number is not None:
                curves.sync()
                store.save(step, parameters, optimizer, params, vars(record))
            progress.update(step, f"loss {row['loss']:.4g}, {row['images_per_second']:.0f} images/s")
            if stop.signal_number is not None:
                print(f"told to end (signal {stop.signal_number}); saved as {store.path(step)}", flush=True)
                raise Interrupted(stop.signal_number)
    except monitor.Diverged as error:
        kept = store.steps()
        where = f"the last good checkpoint is {store.path(kept[-1])}" if kept else "no checkpoint had been saved yet"
        raise monitor.Diverged(
            f"training stopped at {error} ({where}). The same settings meet the same step again: lower "
            f"train.learning_rate={settings.learning_rate:g} or train.max_grad_norm={settings.max_grad_norm:g}"
        ) from None
    finally:
        curves.close()
    return record


def resume(
    store: CheckpointStore, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, max_steps: int
) -> tuple[int, Record]:
    """Put the last whole checkpoint in place; returns its step, or 0.

    A finished run of other code is not taken for the result of this code; an unfinished one is continued, because
    who mends a bug wants to keep the steps, and its record says so.
    """
    store.clean()
    code = code_digest()
    checkpoint = store.latest()
    if checkpoint is not None and checkpoint.step >= max_steps and checkpoint.facts["code"][-1][1] != code:
        print(f"{store.path(checkpoint.step)} is finished, but by other code: training anew", flush=True)
        store.remove()
        checkpoint = None
    if checkpoint is None:
        store.remove()
        return 0, Record(code=[[1, code]])
    restore(checkpoint, parameters, optimizer, store.path(checkpoint.step))
    store.remove(beyond=checkpoint.step)
    record = Record(**checkpoint.facts)
    if checkpoint.step < max_steps:
        print(f"resuming after step {checkpoint.step} from {store.path(checkpoint.step)}", flush=True)
        record.resumed_after.append(checkpoint.step)
        if record.code[-1][1] != code:
            print("WARNING the code of training has changed since that checkpoint was written", flush=True)
            record.code.append([checkpoint.step + 1, code])
    return checkpoint.step, record


def take_step(
    run: Run,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    step: int,
    guard: monitor.SpikeGuard,
) -> dict[str, float]:
    """One optimizer step; returns its row of ``train.csv`` but for the speed.

    Raises:
        Diverged: The guard stops the run; the weights are still those of the step before.
    """
    samples, settings = run.samples, run.settings
    torch.manual_seed(derive_seed(run.seed, "train", step))  # dropout and the like: also a function of (seed, step)
    optimizer.zero_grad(set_to_none=True)
    losses: dict[Kind, float] = {}
    for kind, ids in samples.step(step).items():
        loss_of = partial(_training_loss, samples, kind, step)
        parts = in_parts(ids, run.micro_batch_size)
        losses[kind] = accumulate(list(parameters.values()), parts, samples.mixture.shares[kind], loss_of)
    loss = sum(samples.mixture.shares[kind] * value for kind, value in losses.items())
    grad_norm = float(nn.utils.clip_grad_norm_(parameters.values(), settings.max_grad_norm))
    guard.check(step, loss, grad_norm)
    end = settings.schedule_steps or settings.max_steps
    rate = learning_rate(step, settings.learning_rate, settings.schedule, settings.warmup_steps, end)
    set_learning_rate(optimizer, rate)
    optimizer.step()
    parts_of_loss = {f"loss_{kind}": value for kind, value in losses.items()}
    return {"step": step, "loss": loss, **parts_of_loss, "learning_rate": rate, "grad_norm": grad_norm}


def _training_loss(samples: Samples, kind: Kind, step: int, ids: Sequence[str]) -> Loss:
    return samples.loss(kind, ids, "train", step)


def in_parts(ids: Sequence[str], size: int) -> list[Sequence[str]]:
    """Micro-batches of at most ``size``."""
    return [ids[start : start + size] for start in range(0, len(ids), size)]


def accumulate(
    parameters: Sequence[nn.Parameter], parts: Sequence[Part], share: float, loss_of: Callable[[Part], Loss]
) -> float:
    """Add ``share`` times the gradient of the mean loss over all targets of ``parts``; returns that mean.

    How many targets there are in all is known only after the last part (answers differ in length, masks are drawn),
    so the parts are summed unweighted beside what the gradients held before, and divided at the end.
    """
    if len(parts) == 1:
        loss = loss_of(parts[0])
        (share * loss.value).backward()
        return float(loss.value.detach())
    held = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    targets, total = 0, 0.0
    for part in parts:
        loss = loss_of(part)
        (loss.value * loss.n_targets).backward()
        targets += loss.n_targets
        total += float(loss.value.detach()) * loss.n_targets
    for parameter, before in zip(parameters, held, strict=True):
        if parameter.grad is None:
            parameter.grad = before
            continue
        parameter.grad *= share / targets
        if before is not None:
            parameter.grad += before
    return total / targets


class Curves:
    """``train.csv`` and ``held_out.csv`` of a run, and what is concluded from them while it runs.

    Args:
        folder: Where the two files lie.
        done: Steps that the run resumes after.
    """

    def __init__(self, folder: Path, done: int) -> None:
        self._folder = folder
        with explained(folder, "the training curves"):
            self._train = monitor.Curve(folder / "train.csv", monitor.TRAIN_COLUMNS, done)
            self._held_out = monitor.Curve(folder / "held_out.csv", monitor.HELD_OUT_COLUMNS, done)
        losses = [float(row["loss"]) for row in monitor.read_curve(folder / "train.csv", monitor.TRAIN_COLUMNS)]
        self.guard = monitor.SpikeGuard(losses)
        earlier = monitor.read_curve(folder / "held_out.csv", monitor.HELD_OUT_COLUMNS)
        self._measured: list[dict[str, float | None]] = [
            {key: float(value) if value else None for key, value in row.items()} for row in earlier
        ]

    def train(self, row: Mapping[str, float]) -> None:
        """Append a step."""
        with explained(self._folder, "the training curves"):
            self._train.add(row)

    def measure(self, run: Run, step: int) -> None:
        """Measure the held-out losses, append them, and raise the copy alarm if it is due."""
        row: dict[str, float | None] = {"step": step}
        row |= {f"{kind}_loss": value for kind, value in held_out_losses(run).items()}
        self._measured.append({column: row.get(column) for column in monitor.HELD_OUT_COLUMNS})
        with explained(self._folder, "the training curves"):
            self._held_out.add(row)
        found = ", ".join(f"{name} {value:.4g}" for name, value in row.items() if name != "step")
        if found:
            print(f"held out, step {step}: {found}", flush=True)
        if warning := monitor.copy_alarm(self._measured):
            print(warning, flush=True)

    def sync(self) -> None:
        """Flush both files to disk."""
        with explained(self._folder, "the training curves"):
            self._train.sync()
            self._held_out.sync()

    def close(self) -> None:
        """Close both files."""
        self._train.close()
        self._held_out.close()


@torch.no_grad()
def held_out_losses(run: Run) -> dict[Kind, float]:
    """The mean losses over the held-out images, with the same noise every time."""
    samples = run.samples
    run.model.eval()
    found: dict[Kind, float] = {}
    for kind in samples.held_out_kinds:
        losses = [samples.loss(kind, part, "held_out") for part in in_parts(samples.held_out, run.micro_batch_size)]
        targets = sum(loss.n_targets for loss in losses)
        found[kind] = sum(float(loss.value) * loss.n_targets for loss in losses) / targets
    set_training_mode(run.model)
    return found
