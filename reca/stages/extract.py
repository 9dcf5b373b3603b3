"""``extract``: compute once what the frozen parts of the base model say about every image.

What may be stored the model declares (``cacheable``). Finished shards are kept under the state folder
(:mod:`reca.extraction.cache`) and linked to the output at the end: a killed run goes on from there, and after a
change of the data only new images are encoded. The output does not tell which of this happened.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from reca.config import Config
from reca.data.embeddings import check_shard, write_index
from reca.data.manifest import MANIFEST, ImageReader
from reca.extraction.cache import (
    FinishedShard,
    ReusableRows,
    link,
    link_reusable,
    lock_path,
    merged,
    metadata_path,
    remove_incomplete,
    remove_old,
    rounding_facts,
)
from reca.extraction.encoder import Encoder
from reca.extraction.writer import EmbeddingsWriter
from reca.models.loading import base_digest, base_folder, load_encoders
from reca.runtime.code_digest import code_digest
from reca.runtime.distributed import DistributedContext, end_with_parent, init_distributed, prepare
from reca.runtime.files import atomic_folder
from reca.runtime.hashing import file_digest, json_digest
from reca.runtime.locks import file_lock, friendly_io_errors
from reca.runtime.progress import Progress
from reca.stages.result import write_result

DATASET = Path("outputs/dataset")
EMBEDDINGS = Path("outputs/embeddings")
IGNORED_MODEL_KEYS = {"name", "hub", "prompt_dropout"}
"""Keys of the ``model`` section that no frozen part depends on."""


def extract(config: Config, root: Path) -> None:
    """Write ``outputs/embeddings``: safetensors shards, ``index.json``, ``result.json``.

    Several processes (:func:`init_distributed`) share the shards, which are the same however many there are.

    Raises:
        UserError: Data set or base model are missing or damaged, or the disk is full or read-only.
    """
    end_with_parent()
    base = base_folder(config.model.checkpoint, root)
    device = prepare(config.hardware.device, config.hardware.threads)
    with init_distributed(device) as distributed, ImageReader(root / DATASET) as reader:
        state = root / config.paths.state / "extract" / _fingerprint(config, root, base)
        with (
            file_lock(lock_path(state), f"the extraction {state.name}")
            if distributed.is_main_process
            else nullcontext()
        ):
            with friendly_io_errors(state, "embeddings"):
                finished = _finish(config, reader, base, root, state, device, distributed)
            if not distributed.is_main_process:
                return
            with friendly_io_errors(root / EMBEDDINGS, "embeddings"):
                _publish(config, state, root / EMBEDDINGS, finished)
            remove_old(state)


def _fingerprint(config: Config, root: Path, base: Path) -> str:
    """What decides an image's row, the code included, and which images in which shards; not batch size or device."""
    how: list[Any] = [config.model.model_dump(exclude=IGNORED_MODEL_KEYS), config.extract.dtype]
    how += [base_digest(base), code_digest("extract", family=config.model.family)]
    what = [file_digest(root / DATASET / MANIFEST), config.extract.images_per_shard]
    return f"{json_digest(how, 16)}-{json_digest(what, 16)}"


def _finish(
    config: Config,
    reader: ImageReader,
    base: Path,
    root: Path,
    state: Path,
    device: torch.device,
    distributed: DistributedContext,
) -> list[FinishedShard]:
    """All shards, those of an earlier attempt included."""
    ids, size = reader.ids(), config.extract.images_per_shard
    parts = [ids[start : start + size] for start in range(0, len(ids), size)]
    if distributed.is_main_process:
        remove_incomplete(state, parts)
    distributed.barrier()
    missing = [number for number in range(len(parts)) if not metadata_path(state, number).exists()]
    if distributed.is_main_process and missing:
        link_reusable(state, {name for number in missing for name in parts[number]})
    distributed.barrier()  # all have seen the same gaps before the first one is filled
    finished = len(ids) - sum(len(parts[number]) for number in missing)
    if finished:
        print(f"{finished} of {len(ids)} images were extracted by an earlier attempt", flush=True)
    if missing:
        known = ReusableRows(state)
        new = [name for number in missing for name in parts[number] if name not in known.ids]
        if known.ids:
            reused = len(ids) - finished - len(new)
            print(f"{reused} images are taken from earlier extractions, {len(new)} are new", flush=True)
        family, options = config.model.family, config.model.load_options(root)
        model = load_encoders(family, base, options, device) if new else None
        size, dtype, ahead = config.hardware.micro_batch_size, config.extract.dtype, config.hardware.prefetch
        encoder = Encoder(model, reader, device, size, getattr(torch, dtype), ahead) if model else None
        progress = Progress(len(ids), "images", start=finished)
        with EmbeddingsWriter(state) as writer:
            for number in distributed.shard(missing):
                before = writer.images(parts)
                rows = {name: known.row(name) for name in parts[number] if name in known.ids}
                if encoder is not None:
                    for name, row in encoder.rows([name for name in parts[number] if name not in known.ids]):
                        rows[name] = row
                        progress.update(before + len(rows))
                writer.write(number, parts[number], rows)
        distributed.barrier()
        progress.update(len(ids))
    return [FinishedShard.read(metadata_path(state, number)) for number in range(len(parts))]


def _publish(config: Config, state: Path, output: Path, finished: Sequence[FinishedShard]) -> None:
    """Link the shards into the output folder, or copy and verify them, and write the index."""
    fields = merged([done.fields for done in finished])
    costs = [cost for done in finished for cost in done.rounding]
    facts = {"semantic": rounding_facts(costs)} if "semantic" in fields else {}
    with atomic_folder(output) as folder:
        for done in finished:
            if not link(state / done.shard.file, folder / done.shard.file):
                check_shard(folder, done.shard)
        write_index(folder, [done.shard for done in finished], fields, error=facts)
        images = sum(len(done.shard.ids) for done in finished)
        write_result(folder, "extract", config, ("model", "extract"), images=images, fields=sorted(fields), error=facts)
    stored = ", ".join(f"{name} {field.shape or 'of several shapes'} {field.dtype}" for name, field in fields.items())
    print(f"{images} images in {len(finished)} shards: {stored or 'nothing is frozen'}; rounding {facts}", flush=True)
