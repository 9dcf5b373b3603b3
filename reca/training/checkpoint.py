"""Checkpoints: whole folders named by step, under the fingerprint of everything that changes the weights.

``<state>/checkpoints/<fingerprint>/000100/`` holds ``part-00001-of-00001.safetensors`` (the trained parameters and what
the optimizer knows of each) and ``meta.json``. Where parameters are sharded, every process writes a part with its own
rows, and any number of processes can go on from them. Data order, noise and learning rate are functions of (seed,
step), so nothing of them needs saving. Another fingerprint is another folder and is never looked at.
"""

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
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
"""The kind of the parameters themselves; the other kinds are called as the optimizer calls them."""
STEP = re.compile(r"\d{6,}")
IGNORED_TRAIN_KEYS = ("save_every", "eval_every", "keep_checkpoints")
"""Keys of the ``train`` section that do not change the weights."""


class CorruptCheckpoint(Exception):
    """A checkpoint folder that is incomplete, damaged or another run's."""


@dataclass(frozen=True)
class Checkpoint:
    """One saved step."""

    step: int
    parts: Sequence[Path]
    """Files, each with some rows of every tensor."""
    facts: Mapping[str, Any]
    """What the loop wants to know again: seconds spent, the code that trained it."""


def fingerprint(config: Config, dataset: str, base: str) -> str:
    """Digest (16 hex digits) of everything that changes the weights, and of nothing else.

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
    """The checkpoints of one fingerprint.

    Args:
        state: The state folder.
        fingerprint: See :func:`fingerprint`.
        keep_checkpoints: How many steps are kept; the older ones are removed when a new one is whole.
    """

    def __init__(self, state: Path, fingerprint: str, keep_checkpoints: int) -> None:
        self.fingerprint = fingerprint
        self.folder = state / "checkpoints" / fingerprint
        self._keep_last = keep_checkpoints

    def lock(self, wait_seconds: float | None = None) -> AbstractContextManager[None]:
        """Hold this fingerprint; see :func:`reca.runtime.locks.file_lock`."""
        waiting = {} if wait_seconds is None else {"wait_seconds": wait_seconds}
        path = self.folder.with_name(f"{self.fingerprint}.lock")
        return file_lock(path, f"the training run {self.fingerprint}", **waiting)

    def steps(self) -> list[int]:
        """The saved steps, in order."""
        entries = self.folder.iterdir() if self.folder.is_dir() else []
        return sorted(int(entry.name) for entry in entries if entry.is_dir() and STEP.fullmatch(entry.name))

    def path(self, step: int) -> Path:
        """The folder of one step."""
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
        """Save one step whole, then remove what retention no longer keeps.

        Every process calls it. The leading one makes the folder and gives it its name when all parts are written.

        Args:
            step: Steps done.
            parameters: The trained parameters by name.
            optimizer: Its state is saved with them.
            params: The configuration sections that the run uses, for people.
            facts: See :class:`Checkpoint`.
            distributed: The processes of the run.

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
            save_file(_own_tensors(parameters, optimizer), part)
            sync(part)
            files = writers.all_gather({part.name: _identity(part)})
            if distributed.is_main_process:
                meta = {"fingerprint": self.fingerprint, "step": step, "files": files, "facts": facts, "params": params}
                write_json(temporary / META, meta)
        if distributed.is_main_process:
            for old in self.steps()[: -self._keep_last]:
                shutil.rmtree(self.path(old))

    def clean(self) -> None:
        """Remove what killed processes left half-written. Only under :meth:`lock`."""
        for entry in self.folder.glob(".*") if self.folder.is_dir() else ():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()

    def remove(self, beyond: int = -1) -> None:
        """Forget the steps beyond one; without it, all."""
        for step in self.steps():
            if step > beyond:
                shutil.rmtree(self.path(step))

    def latest(self) -> Checkpoint | None:
        """The last step that is whole; damaged ones are named on stdout and passed over."""
        for step in reversed(self.steps()):
            try:
                return self._read(step)
            except CorruptCheckpoint as error:
                print(f"passing over the checkpoint {self.path(step)}: {error}", flush=True)
        return None

    def _read(self, step: int) -> Checkpoint:
        folder = self.path(step)
        try:
            meta = json.loads((folder / META).read_text())
            owner, facts, files = meta["fingerprint"], meta["facts"], meta["files"]
            if owner != self.fingerprint:
                raise CorruptCheckpoint(f"it belongs to another run ({owner})")
            if not files or not all(PART.fullmatch(name) for name in files):
                raise CorruptCheckpoint(f"its files ({', '.join(files)}) are not those that this code writes")
            for name, identity in files.items():
                _check(folder / name, identity)
                with safe_open(folder / name, "pt"):  # only to see that it can be
                    pass
        except FileNotFoundError as error:
            raise CorruptCheckpoint(f"{Path(error.filename).name} is missing") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CorruptCheckpoint(f"{META} is damaged ({error!r})") from None
        except (SafetensorError, OSError) as error:
            raise CorruptCheckpoint(f"it cannot be read ({error})") from None
        return Checkpoint(step, [folder / name for name in sorted(files)], facts)


def _own_tensors(parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What this process saves, by ``kind/name``: all of it, or its rows."""
    found: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        for kind, value in {WEIGHT: parameter, **optimizer.state.get(parameter, {})}.items():
            found[f"{kind}/{name}"] = local_shard(value)[0].cpu().contiguous()
    return found


def restore(
    checkpoint: Checkpoint, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, folder: Path
) -> None:
    """Put a checkpoint's weights and optimizer state in place; of sharded parameters, this process's rows.

    Raises:
        UserError: It holds other parameters than the model trains, which only a change of the code can do.
    """
    with ExitStack() as stack:
        stored = _Stored([stack.enter_context(safe_open(part, "pt")) for part in checkpoint.parts])
        here = {name: tuple(value.shape) for name, value in parameters.items()}
        there = {name: stored.shape(WEIGHT, name) for name in stored.names(WEIGHT)}
        if here != there:
            name = min(name for name in here.keys() | there.keys() if here.get(name) != there.get(name))
            raise UserError(f"{folder} was written by other code: {name} differs; remove the folder and train again")
        kinds = stored.kinds() - {WEIGHT}
        for name, parameter in parameters.items():
            stored.fill(parameter, WEIGHT, name)
            optimizer.state[parameter] = {
                kind: stored.like(parameter, kind, name) for kind in kinds if name in stored.names(kind)
            }
    optimizer.load_state_dict(optimizer.state_dict())  # which puts each where this kind of optimizer wants it


class _Stored:
    """Tensors of one or many parts, each with some rows of every tensor: those of the first part come first.

    A tensor's key is ``kind/name``. Rows are read from the file as they are asked for.
    """

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
        """What is stored beside a parameter: a number, or something with its rows, sharded as it is."""
        stored = self._parts[0].get_slice(f"{kind}/{name}")
        if not (shape := stored.get_shape()):
            number: Tensor = self._parts[0].get_tensor(f"{kind}/{name}")
            return number.clone()
        own = local_shard(parameter)[0]
        found = shard_like(parameter, torch.zeros(len(own), *shape[1:], dtype=stored[:0].dtype, device=own.device))
        self.fill(found, kind, name)
        return found

    def fill(self, target: Tensor, kind: str, name: str) -> None:
        rows, first = local_shard(target)
        end, at = first + len(rows), 0
        for part in self._parts:
            stored = part.get_slice(f"{kind}/{name}")
            low, high = max(first, at), min(end, at + stored.get_shape()[0])
            if low < high:
                rows[low - first : high - first] = stored[low - at : high - at]
            at += stored.get_shape()[0]


def _identity(path: Path) -> dict[str, Any]:
    return {"size": path.stat().st_size, "sha256": file_digest(path)}


def _check(path: Path, expected: Mapping[str, Any]) -> None:
    size = path.stat().st_size
    if size != expected["size"]:
        raise CorruptCheckpoint(f"{path.name} has {size} bytes instead of {expected['size']}")
    if file_digest(path) != expected["sha256"]:
        raise CorruptCheckpoint(f"{path.name} is damaged, its SHA-256 is another one")
