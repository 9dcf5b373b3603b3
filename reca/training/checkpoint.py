"""Checkpoints: one folder per step, under the fingerprint of all settings and inputs that change the weights.

``<state>/checkpoints/<fingerprint>/000100/`` holds ``part-00001-of-00001.safetensors`` (the trained parameters and
their optimizer state) and ``meta.json``. If parameters are sharded, every rank writes a part with its rows, and a run
can resume on any number of ranks. Data order, noise and learning rate are functions of (seed, step), so they need no
saving. A run never reads the folder of another fingerprint.
"""

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from reca.config import Config
from reca.runtime.distributed import SINGLE_PROCESS, DistributedContext
from reca.runtime.errors import UserError
from reca.runtime.files import atomic_folder, sync, write_json
from reca.runtime.hashing import file_digest, json_digest
from reca.runtime.locks import file_lock, friendly_io_errors
from reca.training.fsdp import local_shard, shard_like

META = "meta.json"
PART = re.compile(r"part-\d{5}-of-\d{5}\.safetensors")
WEIGHT = "weight"
"""Key prefix of the parameters; the other prefixes are the optimizer's names for its state."""
STEP = re.compile(r"\d{6,}")
IGNORED_TRAIN_KEYS = ("save_every", "eval_every", "keep_checkpoints")
"""Keys of the ``train`` section that do not change the weights."""


class CorruptCheckpoint(Exception):
    """A checkpoint folder is incomplete, damaged, or belongs to another run."""


@dataclass
class TrainState:
    """History of a run over all its interruptions, saved with every checkpoint."""

    seconds: float = 0.0
    """Wall time spent in steps, held-out measurements included."""
    resumed_after: list[int] = field(default_factory=list)
    code: list[list[Any]] = field(default_factory=list)
    """[first step, digest of the code that trained from there]; one entry unless the code was edited in between."""


@dataclass(frozen=True)
class Checkpoint:
    """One saved step."""

    step: int
    parts: Sequence[Path]
    """Files with some rows of every tensor each, in the order of the rows."""
    facts: Mapping[str, Any]
    """The run's history (:class:`TrainState`)."""


def fingerprint(config: Config, dataset: str, base: str) -> str:
    """Return a digest (16 hex digits) of the settings and inputs that change the weights.

    The ``hardware`` section is left out: micro-batch size, compilation, world size and sharding change the weights only
    by rounding (and, with ``train.optimizer_state_dtype=8bit``, by other random numbers in rounding).

    Args:
        config: The run's configuration.
        dataset: Digest of the data set's manifest.
        base: Digest of the base model's files.
    """
    values = config.to_dict()
    train = {key: value for key, value in values["train"].items() if key not in IGNORED_TRAIN_KEYS}
    parts = {"train": train, "dataset": dataset, "base": base}
    parts |= {section: values[section] for section in ("model", "extract", "seed")}
    return json_digest(parts, 16)


class CheckpointStore:
    """Checkpoints of a fingerprint.

    Args:
        state: The state folder.
        fingerprint: See :func:`fingerprint`.
        keep_checkpoints: Steps to keep; older ones are removed after a new one is complete.
    """

    def __init__(self, state: Path, fingerprint: str, keep_checkpoints: int) -> None:
        self.fingerprint = fingerprint
        self.folder = state / "checkpoints" / fingerprint
        self._keep_last = keep_checkpoints

    def lock(self, wait_seconds: float | None = None) -> AbstractContextManager[None]:
        """Lock this fingerprint; see :func:`reca.runtime.locks.file_lock`."""
        timeout = {} if wait_seconds is None else {"wait_seconds": wait_seconds}
        path = self.folder.with_name(f"{self.fingerprint}.lock")
        return file_lock(path, f"the training run {self.fingerprint}", **timeout)

    def steps(self) -> list[int]:
        """Return the saved steps, in order."""
        entries = self.folder.iterdir() if self.folder.is_dir() else []
        return sorted(int(entry.name) for entry in entries if entry.is_dir() and STEP.fullmatch(entry.name))

    def path(self, step: int) -> Path:
        """Return the folder of a step."""
        return self.folder / f"{step:06d}"

    def save(
        self,
        step: int,
        parameters: Mapping[str, nn.Parameter],
        optimizer: torch.optim.Optimizer,
        params: Mapping[str, Any],
        facts: Mapping[str, Any],
        distributed: DistributedContext = SINGLE_PROCESS,
    ) -> None:
        """Save a step atomically, then remove the steps beyond ``keep_checkpoints``.

        Collective. Rank 0 creates the folder, and renames it to its final name when all parts are written.

        Args:
            step: Optimizer steps so far.
            parameters: The trained parameters by name.
            optimizer: Its state is saved with the parameters.
            params: The configuration sections of the run, for people.
            facts: See :class:`Checkpoint`.
            distributed: The ranks of the run.

        Raises:
            UserError: The disk is full or read-only; earlier checkpoints are still there.
        """
        if not (distributed.is_main_process or distributed.sharded):
            return
        writers = distributed if distributed.sharded else SINGLE_PROCESS
        with friendly_io_errors(self.folder, f"the checkpoint of step {step}"), ExitStack() as stack:
            temporary = stack.enter_context(atomic_folder(self.path(step))) if distributed.is_main_process else Path()
            part = (
                Path(writers.broadcast(str(temporary)))
                / f"part-{writers.rank + 1:05d}-of-{writers.world_size:05d}.safetensors"
            )
            save_file(_local_tensors(parameters, optimizer), part)
            sync(part)
            files = writers.all_gather({part.name: _identity(part)})
            if distributed.is_main_process:
                meta = {"fingerprint": self.fingerprint, "step": step, "files": files, "facts": facts, "params": params}
                write_json(temporary / META, meta)
        if distributed.is_main_process:
            for old in self.steps()[: -self._keep_last]:
                shutil.rmtree(self.path(old))

    def clean(self) -> None:
        """Remove partial folders of killed processes. Requires :meth:`lock`."""
        for entry in self.folder.glob(".*") if self.folder.is_dir() else ():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()

    def remove(self, beyond: int = -1) -> None:
        """Remove the steps beyond one; by default all."""
        for step in self.steps():
            if step > beyond:
                shutil.rmtree(self.path(step))

    def latest(self) -> Checkpoint | None:
        """Return the last valid step; invalid ones are printed and skipped."""
        for step in reversed(self.steps()):
            try:
                return self._read(step)
            except CorruptCheckpoint as error:
                print(f"skipping the checkpoint {self.path(step)}: {error}", flush=True)
        return None

    def _read(self, step: int) -> Checkpoint:
        folder = self.path(step)
        try:
            meta = json.loads((folder / META).read_text())
            owner, facts, files = meta["fingerprint"], meta["facts"], meta["files"]
            if owner != self.fingerprint:
                raise CorruptCheckpoint(f"it belongs to another run ({owner})")
            if not files or not all(PART.fullmatch(name) for name in files):
                raise CorruptCheckpoint(f"its files ({', '.join(files)}) are not those that this version writes")
            for name, identity in files.items():
                _check(folder / name, identity)
                with safe_open(folder / name, "pt"):  # must be readable
                    pass
        except FileNotFoundError as error:
            raise CorruptCheckpoint(f"{Path(error.filename).name} is missing") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CorruptCheckpoint(f"{META} is damaged ({error!r})") from None
        except (SafetensorError, OSError) as error:
            raise CorruptCheckpoint(f"it cannot be read ({error})") from None
        return Checkpoint(step, [folder / name for name in sorted(files)], facts)


def _local_tensors(parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return this rank's rows of all parameters and their optimizer state, by ``kind/name``."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        for kind, value in {WEIGHT: parameter, **optimizer.state.get(parameter, {})}.items():
            tensors[f"{kind}/{name}"] = local_shard(value)[0].cpu().contiguous()
    return tensors


def restore(
    checkpoint: Checkpoint, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, folder: Path
) -> None:
    """Load a checkpoint's weights and optimizer state in place; for sharded parameters, this rank's rows.

    Raises:
        UserError: The model trains other parameters, because the code has changed.
    """
    with ExitStack() as stack:
        stored = _Stored([stack.enter_context(safe_open(part, "pt")) for part in checkpoint.parts])
        expected = {name: tuple(value.shape) for name, value in parameters.items()}
        shapes = {name: stored.shape(WEIGHT, name) for name in stored.names(WEIGHT)}
        if expected != shapes:
            name = min(name for name in expected.keys() | shapes.keys() if expected.get(name) != shapes.get(name))
            raise UserError(f"{folder} was written by other code: {name} differs; remove the folder and train again")
        kinds = stored.kinds() - {WEIGHT}
        for name, parameter in parameters.items():
            stored.fill(parameter, WEIGHT, name)
            optimizer.state[parameter] = {
                kind: stored.like(parameter, kind, name) for kind in kinds if name in stored.names(kind)
            }
    optimizer.load_state_dict(optimizer.state_dict())  # moves the state to the optimizer's devices and types


def resume(
    store: CheckpointStore,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    max_steps: int,
    code: str,
    distributed: DistributedContext,
) -> tuple[int, TrainState]:
    """Load the last valid checkpoint on every rank; returns its step, or 0, and the run's history.

    A finished run of other code is trained again. An unfinished one is continued, because after
    fixing a bug one wants to keep the steps, and its history records the change.

    Raises:
        UserError: The checkpoint does not fit the model, or the ranks do not see the same one.
    """
    if distributed.is_main_process:
        store.clean()
    distributed.barrier()
    checkpoint = store.latest()
    step = checkpoint.step if checkpoint is not None else 0
    # The all-reduce is also a barrier: no rank removes a checkpoint that another one still reads.
    if distributed.all_reduce_sum([step]) != [step * distributed.world_size]:
        raise UserError(f"the processes find different checkpoints in {store.folder}; paths.state must be shared")
    if checkpoint is not None and checkpoint.step >= max_steps and checkpoint.facts["code"][-1][1] != code:
        print(f"{store.path(checkpoint.step)} is finished, but by other code: training again", flush=True)
        checkpoint = None
    if checkpoint is not None:
        restore(checkpoint, parameters, optimizer, store.path(checkpoint.step))
    if distributed.is_main_process:
        store.remove(beyond=checkpoint.step if checkpoint is not None else -1)
    if checkpoint is None:
        return 0, TrainState(code=[[1, code]])
    state = TrainState(**checkpoint.facts)
    if checkpoint.step < max_steps:
        print(f"resuming after step {checkpoint.step} from {store.path(checkpoint.step)}", flush=True)
        state.resumed_after.append(checkpoint.step)
        if state.code[-1][1] != code:
            print("WARNING the code of training has changed since that checkpoint was written", flush=True)
            state.code.append([checkpoint.step + 1, code])
    return checkpoint.step, state


class _Stored:
    """Tensors ``kind/name`` whose rows are split over one or many files, read on demand."""

    def __init__(self, parts: Sequence[Any]) -> None:
        self._parts = parts
        self._names: dict[str, set[str]] = {}
        for key in parts[0].keys():  # noqa: SIM118 (a file, which has no iterator)
            kind, name = key.split("/", 1)
            self._names.setdefault(kind, set()).add(name)

    def kinds(self) -> set[str]:
        return set(self._names)

    def names(self, kind: str) -> set[str]:
        return self._names.get(kind, set())

    def shape(self, kind: str, name: str) -> tuple[int, ...]:
        shapes = [part.get_slice(f"{kind}/{name}").get_shape() for part in self._parts]
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])

    def like(self, parameter: nn.Parameter, kind: str, name: str) -> Tensor:
        """Return optimizer state of a parameter: a scalar, or a tensor with its rows that is sharded like it."""
        stored = self._parts[0].get_slice(f"{kind}/{name}")
        if not (shape := stored.get_shape()):
            number: Tensor = self._parts[0].get_tensor(f"{kind}/{name}")
            return number.clone()
        shard = local_shard(parameter)[0]
        state = shard_like(parameter, torch.zeros(len(shard), *shape[1:], dtype=stored[:0].dtype, device=shard.device))
        self.fill(state, kind, name)
        return state

    def fill(self, target: Tensor, kind: str, name: str) -> None:
        rows, first = local_shard(target)
        end, offset = first + len(rows), 0
        for part in self._parts:
            stored = part.get_slice(f"{kind}/{name}")
            low, high = max(first, offset), min(end, offset + stored.get_shape()[0])
            if low < high:
                rows[low - first : high - first] = stored[low - offset : high - offset]
            offset += stored.get_shape()[0]


def _identity(path: Path) -> dict[str, Any]:
    return {"size": path.stat().st_size, "sha256": file_digest(path)}


def _check(path: Path, expected: Mapping[str, Any]) -> None:
    size = path.stat().st_size
    if size != expected["size"]:
        raise CorruptCheckpoint(f"{path.name} has {size} bytes instead of {expected['size']}")
    if file_digest(path) != expected["sha256"]:
        raise CorruptCheckpoint(f"{path.name} is damaged: its SHA-256 differs")
