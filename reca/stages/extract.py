"""``extract``: compute once what the frozen parts of the base model say about every image.

What may be stored the model declares (``cacheable``). Finished shards are kept under the state folder, named by
everything that decides their content, and moved to the output at the end; a killed run goes on from there.
"""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reca.config import Config
from reca.data.embeddings import (
    EmbeddingsError,
    Field,
    Shard,
    check_shard,
    smallest_integers,
    write_index,
    write_shard,
)
from reca.data.images import square_tensor
from reca.data.manifest import MANIFEST, ImageReader
from reca.digest import file_digest
from reca.files import whole_folder, write_json
from reca.models.base import UnifiedModel
from reca.nn.random import SampleRng, derive_seed
from reca.progress import Progress
from reca.stages.result import write_result
from reca.training.base_model import base_digest, base_folder, load_base
from reca.training.code import EXTRACTION, code_digest
from reca.training.process import World, end_with_parent, joined, prepare
from reca.training.storage import exclusive, explained

DATASET = Path("outputs/dataset")
EMBEDDINGS = Path("outputs/embeddings")
NOT_SEEN = {"name", "hub", "prompt_dropout"}
"""Keys of the ``model`` section that no frozen part depends on."""


@dataclass
class Rounding:
    """What storing ``semantic`` in fewer bits has cost."""

    max: float = 0.0
    """Largest absolute error."""
    squared_error: float = 0.0
    squared: float = 0.0

    def add(self, exact: Tensor, stored: Tensor) -> None:
        """Compare some values with what is stored of them."""
        difference = exact.double() - stored.double()
        self.max = max(self.max, float(difference.abs().max()))
        self.squared_error += float(difference.square().sum())
        self.squared += float(exact.double().square().sum())

    def merge(self, other: "Rounding") -> None:
        """Add another shard's errors."""
        self.max = max(self.max, other.max)
        self.squared_error += other.squared_error
        self.squared += other.squared

    def facts(self) -> dict[str, float]:
        """For ``index.json``: the largest error, and the root mean square error relative to that of the values."""
        return {"max": self.max, "relative_rms": math.sqrt(self.squared_error / self.squared) if self.squared else 0.0}


@dataclass(frozen=True)
class Done:
    """A finished shard."""

    shard: Shard
    fields: dict[str, Field]
    rounding: Rounding


def extract(config: Config, root: Path) -> None:
    """Write ``outputs/embeddings``: safetensors shards, ``index.json``, ``result.json``.

    Several processes (:func:`joined`) share the shards, which are the same however many there are.

    Raises:
        UserError: Data set or base model are missing or damaged, or the disk is full or read-only.
    """
    end_with_parent()
    base = base_folder(config, root)
    device = prepare(config.hardware.device, config.hardware.threads)
    with joined(device) as world, ImageReader(root / DATASET) as reader:
        state = root / config.paths.state / "extract" / _fingerprint(config, root, base)
        lock = state.with_name(f"{state.name}.lock")
        with exclusive(lock, f"the extraction {state.name}") if world.leads else nullcontext():
            with explained(state, "embeddings"):
                finished = _finish(config, reader, base, root, state, device, world)
            if not world.leads:
                return
            with explained(root / EMBEDDINGS, "embeddings"):
                _publish(config, state, root / EMBEDDINGS, finished)
            shutil.rmtree(state)


def _fingerprint(config: Config, root: Path, base: Path) -> str:
    """Everything that decides what the shards hold, the code included; not the batch size, not the device."""
    parts: list[Any] = [config.model.model_dump(exclude=NOT_SEEN), config.extract.model_dump()]
    parts += [
        file_digest(root / DATASET / MANIFEST),
        base_digest(base),
        code_digest(EXTRACTION),
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _finish(
    config: Config, reader: ImageReader, base: Path, root: Path, state: Path, device: torch.device, world: World
) -> list[Done]:
    """All shards, those of an earlier attempt included."""
    ids, size = reader.ids(), config.extract.images_per_shard
    parts = [ids[start : start + size] for start in range(0, len(ids), size)]
    if world.leads:
        _tidy(state, parts)
    world.wait()
    missing = [number for number in range(len(parts)) if not _note(state, number).exists()]
    world.wait()  # all have seen the same gaps before the first one is filled
    known = len(ids) - sum(len(parts[number]) for number in missing)
    if known:
        print(f"{known} of {len(ids)} images were extracted by an earlier attempt", flush=True)
    if missing:
        model = load_base(config, base, root, device).eval()
        progress = Progress(len(ids), "images", start=known)
        for number in world.part(missing):
            # A note is a finished shard, whichever process wrote it.
            known = sum(len(part) for other, part in enumerate(parts) if _note(state, other).exists())
            _extract_shard(config, reader, model, device, state, number, parts[number], progress, known)
        world.wait()
        progress.update(len(ids))
    return [_read_note(state, number) for number in range(len(parts))]


def _tidy(state: Path, parts: Sequence[Sequence[str]]) -> None:
    """Remove what is not whole of an earlier attempt, and the notes of damaged shards."""
    state.mkdir(parents=True, exist_ok=True)
    for leftover in state.glob(".*"):
        leftover.unlink()
    for number, ids in enumerate(parts):
        if not _is_whole(state, number, ids):
            _note(state, number).unlink(missing_ok=True)


def _extract_shard(
    config: Config,
    reader: ImageReader,
    model: UnifiedModel,
    device: torch.device,
    state: Path,
    number: int,
    ids: Sequence[str],
    progress: Progress,
    known: int,
) -> None:
    """Compute one shard; its JSON file, written last, says that it is whole."""
    collected: dict[str, list[Tensor]] = {name: [] for name in sorted(model.cacheable)}
    rounding = Rounding()
    for start, values in _encode(reader, model, device, ids, config.hardware.micro_batch_size):
        for name, value in values.items():
            if name == "semantic":
                stored = value.to(getattr(torch, config.extract.dtype))
                rounding.add(value, stored)
                value = stored
            collected[name].append(value)
        progress.update(known + min(start + config.hardware.micro_batch_size, len(ids)))
    tensors = {name: torch.cat(values) for name, values in collected.items()}
    tensors = {
        name: value if value.is_floating_point() else smallest_integers(value) for name, value in tensors.items()
    }
    shard = write_shard(state / _shard_name(number), ids, tensors)
    types = {name: str(value.dtype).removeprefix("torch.") for name, value in tensors.items()}
    fields = {name: Field(list(value.shape[1:]), types[name]) for name, value in tensors.items()}
    write_json(_note(state, number), asdict(Done(shard, fields, rounding)))


@torch.no_grad()
def _encode(
    reader: ImageReader, model: UnifiedModel, device: torch.device, ids: Sequence[str], batch_size: int
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Batches of (first row, field -> values on the CPU)."""
    for start in range(0, len(ids), batch_size):
        chosen = ids[start : start + batch_size]
        images = [reader.load(name) for name in chosen]
        values: dict[str, Tensor] = {}
        if "semantic" in model.cacheable:
            pixels = square_tensor(images, model.spec.understanding_size).to(device)
            values["semantic"] = model.encode_semantic(pixels).embeds.float().cpu()
        if "target" in model.cacheable:
            pixels = square_tensor(images, model.spec.generation_size).to(device)
            values["target"] = _fixed_target(model, pixels, chosen, check=start == 0)
        yield start, values


def _fixed_target(model: UnifiedModel, pixels: Tensor, ids: Sequence[str], check: bool) -> Tensor:
    """Targets that do not depend on any draw; a stored sample of a distribution would be another method."""

    def encoded(attempt: int) -> Tensor:
        rng = SampleRng([derive_seed("extract", attempt, name) for name in ids])
        return model.encode_target(pixels, rng).values.cpu()

    values = encoded(0)
    if check and not torch.equal(values, encoded(1)):
        raise TypeError(
            f"{type(model).__name__} declares its target cacheable, but encode_target draws from rng; "
            "it must return the moments of the distribution, or not declare it"
        )
    return values


def _is_whole(state: Path, number: int, ids: Sequence[str]) -> bool:
    """Whether an earlier attempt finished a shard, and it is intact."""
    try:
        done = _read_note(state, number)
        check_shard(state, done.shard)
    except (OSError, ValueError, KeyError, TypeError, EmbeddingsError):
        return False
    return done.shard.ids == list(ids)


def _read_note(state: Path, number: int) -> Done:
    note = json.loads(_note(state, number).read_text())
    fields = {name: Field(**field) for name, field in note["fields"].items()}
    return Done(Shard(**note["shard"]), fields, Rounding(**note["rounding"]))


def _publish(config: Config, state: Path, output: Path, finished: Sequence[Done]) -> None:
    """Link or copy the shards into the output folder, verify them there, and write the index."""
    fields: dict[str, Field] = {}
    rounding = Rounding()
    for done in finished:
        for name, described in done.fields.items():
            if name not in fields or described.dtype == "int32":  # the widest type that a shard needed
                fields[name] = described
        rounding.merge(done.rounding)
    with whole_folder(output) as folder:
        for done in finished:
            _link(state / done.shard.file, folder / done.shard.file)
            check_shard(folder, done.shard)
        facts = {"semantic": rounding.facts()} if "semantic" in fields else {}
        write_index(folder, [done.shard for done in finished], fields, error=facts)
        images = sum(len(done.shard.ids) for done in finished)
        write_result(folder, "extract", config, ("model", "extract"), images=images, fields=sorted(fields), error=facts)
    stored = ", ".join(f"{name} {field.shape} {field.dtype}" for name, field in fields.items()) or "nothing is frozen"
    print(f"{images} images in {len(finished)} shards: {stored}; rounding {facts}", flush=True)


def _link(source: Path, destination: Path) -> None:
    try:
        os.link(source, destination)
    except OSError:  # another disk, or a file system without hard links
        shutil.copyfile(source, destination)


def _shard_name(number: int) -> str:
    return f"shard-{number:05d}.safetensors"


def _note(state: Path, number: int) -> Path:
    return state / f"shard-{number:05d}.json"
