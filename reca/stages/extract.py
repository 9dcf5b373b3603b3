"""``extract``: encode every image once by the frozen parts of the base model.

The model declares which fields may be stored (``cacheable``). Finished shards stay under the state folder
(:mod:`reca.extraction.cache`) and are linked into the output at the end: a killed run resumes from them, and after a
change of the data only new images are encoded. The output is the same in all cases.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from reca.config import Config
from reca.data.embeddings import check_shard
from reca.data.images import ImageReader
from reca.data.manifest import MANIFEST
from reca.extraction import cache
from reca.extraction.encoder import Encoder
from reca.extraction.writer import EmbeddingsWriter, write_index
from reca.models.loading import base_digest, base_folder, load_encoders
from reca.runtime.code_digest import code_digest
from reca.runtime.distributed import DistributedContext, configure_device, init_distributed
from reca.runtime.files import atomic_folder
from reca.runtime.hashing import file_digest, json_digest
from reca.runtime.locks import file_lock, friendly_io_errors
from reca.runtime.progress import Progress
from reca.runtime.signals import end_with_parent
from reca.stages.result import write_result

DATASET = Path("outputs/dataset")
EMBEDDINGS = Path("outputs/embeddings")
IGNORED_MODEL_KEYS = {"name", "hub", "prompt_dropout"}
"""Keys of the ``model`` section that no frozen part depends on."""


def extract(config: Config, root: Path) -> None:
    """Write ``outputs/embeddings``: safetensors shards, ``index.json``, ``result.json``.

    The ranks (:func:`init_distributed`) share the shards, whose bytes do not depend on the world size.

    Raises:
        UserError: Data set or base model are absent or damaged, or the disk is full or read-only.
    """
    end_with_parent()
    base = base_folder(config.model.checkpoint, root)
    device = configure_device(config.hardware.device, config.hardware.threads)
    reader = ImageReader(root / DATASET)
    with init_distributed(device) as distributed:
        state = root / config.paths.state / "extract" / _fingerprint(config, root, base)
        lock = file_lock(cache.lock_path(state), f"the extraction {state.name}")
        with lock if distributed.is_main_process else nullcontext():
            with friendly_io_errors(state, "embeddings"):
                finished = _finish(config, reader, base, root, state, device, distributed)
            if not distributed.is_main_process:
                return
            with friendly_io_errors(root / EMBEDDINGS, "embeddings"):
                _publish(config, state, root / EMBEDDINGS, finished)
            cache.remove_old(state)


def _fingerprint(config: Config, root: Path, base: Path) -> str:
    """Return digests of everything that decides a row, the code included, and of the order of the images.

    Batch size, device and threads are left out: they change rows only by rounding (:class:`Encoder`).
    """
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
) -> list[cache.FinishedShard]:
    """Encode what earlier attempts have not, and return all shards."""
    ids, size = reader.ids(), config.extract.images_per_shard
    shards = [ids[start : start + size] for start in range(0, len(ids), size)]
    if distributed.is_main_process:
        cache.remove_incomplete(state, shards)
    distributed.barrier()
    unfinished = [number for number in range(len(shards)) if not cache.metadata_path(state, number).exists()]
    if distributed.is_main_process and unfinished:
        cache.link_reusable(state, {name for number in unfinished for name in shards[number]})
    distributed.barrier()  # every rank must list the unfinished shards before one is written
    finished = len(ids) - sum(len(shards[number]) for number in unfinished)
    if finished:
        print(f"{finished} of {len(ids)} images were extracted by an earlier attempt", flush=True)
    if unfinished:
        reusable = cache.ReusableRows(state)
        new = [name for number in unfinished for name in shards[number] if name not in reusable.ids]
        if reusable.ids:
            reused = len(ids) - finished - len(new)
            print(f"{reused} images are taken from earlier extractions, {len(new)} are new", flush=True)
        family, options = config.model.family, config.model.load_options(root)
        model = load_encoders(family, base, options, device) if new else None
        batch_size, prefetch = config.hardware.micro_batch_size, config.hardware.prefetch
        dtype = getattr(torch, config.extract.dtype)
        encoder = Encoder(model, reader, device, batch_size, dtype, prefetch) if model else None
        progress = Progress(len(ids), "images", start=finished)
        with EmbeddingsWriter(state) as writer:
            for number in distributed.shard(unfinished):
                images_before = writer.images(shards)
                rows = {name: reusable.row(name) for name in shards[number] if name in reusable.ids}
                if encoder is not None:
                    for name, row in encoder.rows([name for name in shards[number] if name not in reusable.ids]):
                        rows[name] = row
                        progress.update(images_before + len(rows))
                writer.write(number, shards[number], rows)
        distributed.barrier()
        progress.update(len(ids))
    return [cache.FinishedShard.read(cache.metadata_path(state, number)) for number in range(len(shards))]


def _publish(config: Config, state: Path, output: Path, shards: Sequence[cache.FinishedShard]) -> None:
    """Link the shards into the output folder, or copy and verify them, and write the index."""
    fields = cache.merged([finished.fields for finished in shards])
    errors = [error for finished in shards for error in finished.rounding]
    facts = {"semantic": cache.rounding_facts(errors)} if "semantic" in fields else {}
    with atomic_folder(output) as folder:
        for finished in shards:
            if not cache.link(state / finished.shard.file, folder / finished.shard.file):
                check_shard(folder, finished.shard)
        write_index(folder, [finished.shard for finished in shards], fields, error=facts)
        images = sum(len(finished.shard.ids) for finished in shards)
        write_result(folder, "extract", config, ("model", "extract"), images=images, fields=sorted(fields), error=facts)
    stored = ", ".join(f"{name} {field.shape or 'of several shapes'} {field.dtype}" for name, field in fields.items())
    print(f"{images} images in {len(shards)} shards: {stored or 'no part is frozen'}; rounding {facts}", flush=True)
