"""Checkpoints: whole folders named by step, under the fingerprint of everything that changes the weights.

``<state>/checkpoints/<fingerprint>/000100/`` holds ``model.safetensors`` (the trained parameters),
``training_state.pt`` (the optimizer) and ``meta.json``. Data order, noise and learning rate are functions of
(seed, step), so nothing of them needs saving. Another fingerprint is another folder and is never looked at.
"""

import hashlib
import json
import pickle
import re
import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from reca.config import Config
from reca.digest import file_digest
from reca.errors import UserError
from reca.files import whole_folder, write_json
from reca.training.storage import exclusive, explained

WEIGHTS, STATE, META = "model.safetensors", "training_state.pt", "meta.json"
STEP = re.compile(r"\d{6,}")
NOT_SCIENCE = ("save_every", "eval_every", "keep_last")
"""Keys of the ``train`` section that do not change the weights."""


class TornCheckpoint(Exception):
    """A checkpoint folder that is incomplete, damaged or another run's."""


@dataclass(frozen=True)
class Checkpoint:
    """One saved step."""

    step: int
    weights: Mapping[str, Tensor]
    optimizer: Mapping[str, Any]
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
    train = {key: value for key, value in values["train"].items() if key not in NOT_SCIENCE}
    parts = {"train": train, "dataset": dataset, "base": base}
    parts |= {section: values[section] for section in ("model", "extract", "seed")}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


class CheckpointStore:
    """The checkpoints of one fingerprint.

    Args:
        state: The state folder.
        fingerprint: See :func:`fingerprint`.
        keep_last: How many steps are kept; the older ones are removed when a new one is whole.
    """

    def __init__(self, state: Path, fingerprint: str, keep_last: int) -> None:
        self.fingerprint = fingerprint
        self.folder = state / "checkpoints" / fingerprint
        self._keep_last = keep_last

    def lock(self, wait_seconds: float | None = None) -> AbstractContextManager[None]:
        """Hold this fingerprint; see :func:`reca.training.storage.exclusive`."""
        waiting = {} if wait_seconds is None else {"wait_seconds": wait_seconds}
        path = self.folder.with_name(f"{self.fingerprint}.lock")
        return exclusive(path, f"the training run {self.fingerprint}", **waiting)

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
    ) -> None:
        """Save one step whole, then remove what retention no longer keeps.

        Args:
            step: Steps done.
            parameters: The trained parameters by name.
            optimizer: Its state is saved with them.
            params: The configuration sections that the run uses, for people.
            facts: See :class:`Checkpoint`.

        Raises:
            UserError: The disk is full or read-only; earlier checkpoints are still there.
        """
        with explained(self.folder, f"the checkpoint of step {step}"), whole_folder(self.path(step)) as temporary:
            save_file(
                {name: value.detach().cpu().contiguous() for name, value in parameters.items()}, temporary / WEIGHTS
            )
            with (temporary / STATE).open("wb") as file:
                torch.save(optimizer.state_dict(), file)
            files = {name: _identity(temporary / name) for name in (WEIGHTS, STATE)}
            meta = {"fingerprint": self.fingerprint, "step": step, "files": files, "facts": facts, "params": params}
            write_json(temporary / META, meta)
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
            except TornCheckpoint as error:
                print(f"passing over the checkpoint {self.path(step)}: {error}", flush=True)
        return None

    def _read(self, step: int) -> Checkpoint:
        folder = self.path(step)
        try:
            meta = json.loads((folder / META).read_text())
            owner, facts, files = meta["fingerprint"], meta["facts"], meta["files"]
            if owner != self.fingerprint:
                raise TornCheckpoint(f"it belongs to another run ({owner})")
            for name in (WEIGHTS, STATE):
                _check(folder / name, files[name])
            weights = load_file(folder / WEIGHTS)
            optimizer = torch.load(folder / STATE, map_location="cpu", weights_only=True)
        except FileNotFoundError as error:
            raise TornCheckpoint(f"{Path(error.filename).name} is missing") from None
        except (ValueError, KeyError, TypeError) as error:
            raise TornCheckpoint(f"{META} is damaged ({error!r})") from None
        except (SafetensorError, pickle.UnpicklingError, RuntimeError, OSError) as error:
            raise TornCheckpoint(f"it cannot be read ({error})") from None
        return Checkpoint(step, weights, optimizer, facts)


def restore(
    checkpoint: Checkpoint, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, folder: Path
) -> None:
    """Put a checkpoint's weights and optimizer state in place.

    Raises:
        UserError: It holds other parameters than the model trains, which only a change of the code can do.
    """
    here = {name: tuple(value.shape) for name, value in parameters.items()}
    there = {name: tuple(value.shape) for name, value in checkpoint.weights.items()}
    if here != there:
        names = sorted(name for name in here.keys() | there.keys() if here.get(name) != there.get(name))
        raise UserError(f"{folder} was written by other code: {names[0]} differs; remove the folder and train again")
    with torch.no_grad():
        for name, value in checkpoint.weights.items():
            parameters[name].copy_(value)
    optimizer.load_state_dict(dict(checkpoint.optimizer))


def _identity(path: Path) -> dict[str, Any]:
    return {"size": path.stat().st_size, "sha256": file_digest(path)}


def _check(path: Path, expected: Mapping[str, Any]) -> None:
    size = path.stat().st_size
    if size != expected["size"]:
        raise TornCheckpoint(f"{path.name} has {size} bytes instead of {expected['size']}")
    if file_digest(path) != expected["sha256"]:
        raise TornCheckpoint(f"{path.name} is damaged, its SHA-256 is another one")
