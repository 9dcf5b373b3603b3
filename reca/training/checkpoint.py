"""Checkpoints: one folder per step, under the fingerprint of all settings and inputs that change the weights.

``<state>/checkpoints/<fingerprint>/000100/`` holds the trained parameters and their optimizer state, which
``torch.distributed.checkpoint`` writes as ``shard-<rank>-model-<file>-of-<files>.safetensors`` and reads on any number
of ranks, and ``meta.json``, which is written last. Data order, noise and learning rate are functions of (seed, step),
so they need no saving. A run never reads the folder of another fingerprint.
"""

import json
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from reca.config import Config
from reca.runtime.distributed import SINGLE_PROCESS, DistributedContext
from reca.runtime.errors import UserError
from reca.runtime.files import atomic_folder, write_json
from reca.runtime.hashing import file_digest, json_digest
from reca.runtime.locks import file_lock, friendly_io_errors
from reca.training.fsdp import zeros_like_rows

META = "meta.json"
SHARD_FILE = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")
FILE_BYTES, MAX_FILES = 2**26, 64
"""Of a rank's files. torch makes a file in memory before it writes it, so small files keep memory flat."""
NO_GROUP_WARNING = "torch.distributed is disabled, unavailable or uninitialized"
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
    folder: Path
    tensors: Mapping[str, Any]
    """torch's ``TensorStorageMetadata`` by ``kind/name``: size and dtype of each tensor."""
    facts: Mapping[str, Any]
    """The run's history (:class:`TrainState`)."""


def fingerprint(config: Config, dataset: str, base: str) -> str:
    """Return a digest (16 hex digits) of the settings and inputs that change the weights.

    The ``hardware`` section is left out: micro-batch size, compilation, world size and sharding change the weights only
    by rounding.

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

        Collective. Rank 0 creates the folder, and renames it to its final name when all files are written.

        Args:
            step: Optimizer steps so far.
            parameters: The trained parameters by name.
            optimizer: Its state is saved with the parameters.
            params: The configuration sections of the run, for people.
            facts: See :class:`Checkpoint`.
            distributed: The ranks of the run.

        Raises:
            UserError: On every rank: the disk of one is full or read-only, or they do not share it. Earlier
                checkpoints are still there.
        """
        with friendly_io_errors(self.folder, f"the checkpoint of step {step}"), ExitStack() as stack:
            temporary = stack.enter_context(atomic_folder(self.path(step))) if distributed.is_main_process else Path()
            temporary = Path(distributed.broadcast(str(temporary)))
            _write(temporary, _tensors(parameters, optimizer), distributed)
            own_files = sorted(temporary.glob(f"shard-{distributed.rank + 1:05d}-*"))
            files = distributed.all_gather({path.name: _identity(path) for path in own_files})
            if distributed.is_main_process:
                if not all((temporary / name).is_file() for name in files):
                    raise UserError(f"the processes do not share {self.folder}; paths.state must be shared")
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
            names = sorted({path.name for path in folder.glob("*.safetensors")} | files.keys())
            if not files or not all(name in files and SHARD_FILE.fullmatch(name) for name in names):
                raise CorruptCheckpoint(f"its files ({', '.join(names)}) are not those that this version writes")
            for name, identity in files.items():
                _check(folder / name, identity)
            with _dcp() as dcp:
                tensors = dcp.HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
        except FileNotFoundError as error:
            raise CorruptCheckpoint(f"{Path(error.filename).name} is missing") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CorruptCheckpoint(f"{META} is damaged ({error!r})") from None
        except (SafetensorError, OSError) as error:
            raise CorruptCheckpoint(f"it cannot be read ({error})") from None
        return Checkpoint(step, folder, tensors, facts)


def _tensors(parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return all parameters and their optimizer state by ``kind/name``."""
    return {
        f"{kind}/{name}": value.detach().contiguous()
        for name, parameter in parameters.items()
        for kind, value in {WEIGHT: parameter, **optimizer.state.get(parameter, {})}.items()
    }


@contextmanager
def _dcp() -> Iterator[Any]:
    """Yield ``torch.distributed.checkpoint``, of which only the safetensors storage is used: it reads no pickle."""
    from torch.distributed import checkpoint as dcp

    warnings.filterwarnings("ignore", NO_GROUP_WARNING, UserWarning)
    try:
        yield dcp
    except dcp.CheckpointException as error:  # a BaseException, raised on every rank, with the errors of some
        raise next(iter(error.failures.values()))[0] from None


def _write(folder: Path, tensors: dict[str, Tensor], distributed: DistributedContext) -> None:
    """Write this rank's rows; of tensors that are not sharded every rank writes some."""
    sizes = [(value.to_local() if isinstance(value, DTensor) else value).nbytes for value in tensors.values()]
    file_bytes = max(FILE_BYTES, sum(sizes) // MAX_FILES)
    files = {key: end // file_bytes + 1 for key, end in zip(tensors, accumulate(sizes), strict=True)}
    with _dcp() as dcp:
        writer = dcp.HuggingFaceStorageWriter(str(folder), files, save_distributed=True)
        dcp.save(tensors, storage_writer=writer, no_dist=distributed.world_size == 1)


def restore(checkpoint: Checkpoint, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
    """Load a checkpoint's weights and optimizer state in place; for sharded parameters, this rank's rows.

    Raises:
        UserError: The model trains other parameters, because the code has changed.
    """
    expected = {f"{WEIGHT}/{name}": value.shape for name, value in parameters.items()}
    shapes = {key: tensor.size for key, tensor in checkpoint.tensors.items() if key.startswith(f"{WEIGHT}/")}
    if expected != shapes:
        key = min(key for key in expected.keys() | shapes.keys() if expected.get(key) != shapes.get(key))
        where, name = checkpoint.folder, key.removeprefix(f"{WEIGHT}/")
        raise UserError(f"{where} was written by other code: {name} differs; remove the folder and train again")
    tensors: dict[str, Tensor] = {}
    for key, tensor in checkpoint.tensors.items():
        kind, name = key.split("/", 1)
        parameter, dtype = parameters[name], tensor.properties.dtype
        if kind == WEIGHT:
            tensors[key] = parameter.detach()
            continue
        if tensor.size:
            value = zeros_like_rows(parameter, tensor.size[1:], dtype)
        else:  # the step, which only torch's fused kernel wants on the device
            value = torch.zeros((), dtype=dtype, device=parameter.device if optimizer.defaults["fused"] else None)
        tensors[key] = optimizer.state[parameter][kind] = value
    with _dcp() as dcp:  # without collectives, because every rank knows which rows it needs
        dcp.load(tensors, storage_reader=dcp.HuggingFaceStorageReader(str(checkpoint.folder)), no_dist=True)


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
        restore(checkpoint, parameters, optimizer)
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


def _identity(path: Path) -> dict[str, Any]:
    return {"size": path.stat().st_size, "sha256": file_digest(path)}


def _check(path: Path, expected: Mapping[str, Any]) -> None:
    size = path.stat().st_size
    if size != expected["size"]:
        raise CorruptCheckpoint(f"{path.name} has {size} bytes instead of {expected['size']}")
    if file_digest(path) != expected["sha256"]:
        raise CorruptCheckpoint(f"{path.name} is damaged: its SHA-256 differs")
