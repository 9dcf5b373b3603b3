"""``extract``: encode every image once by the frozen parts of the base model.

The model declares which fields may be stored (``cacheable``). Finished shards stay under the state folder
(:mod:`reca.extraction.cache`) and are linked into the output at the end: a killed run resumes from them, and after a
change of the data only new images are encoded. The output is the same in all cases and on any number of devices.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from reca.config import Config
from reca.data.embeddings import check_shard
from reca.data.images import ImageReader
from reca.data.manifest import MANIFEST, read_manifest
from reca.extraction import cache
from reca.extraction.encoder import Encoder
from reca.extraction.writer import EmbeddingsWriter, write_index
from reca.models.loading import base_digest, base_folder, load_encoders
from reca.runtime.code_digest import code_digest
from reca.runtime.device import configure_device
from reca.runtime.fan_out import fan_out
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

    Raises:
        UserError: Data set or base model are absent or damaged, or the disk is full or read-only.
    """
    end_with_parent()
    base = base_folder(config.model.checkpoint, root)
    state = root / config.paths.state / "extract" / _fingerprint(config, root, base)
    with file_lock(cache.lock_path(state), f"the extraction {state.name}"):
        with friendly_io_errors(state, "embeddings"):
            finished = _finish(config, base, root, state)
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


def _finish(config: Config, base: Path, root: Path, state: Path) -> list[cache.FinishedShard]:
    """Encode what earlier attempts have not, and return all shards."""
    ids, size = read_manifest(root / DATASET, ["id"])["id"].to_pylist(), config.extract.images_per_shard
    shards = [ids[start : start + size] for start in range(0, len(ids), size)]
    cache.remove_incomplete(state, shards)
    unfinished = [number for number in range(len(shards)) if not cache.metadata_path(state, number).exists()]
    new = {name for number in unfinished for name in shards[number]}
    done = len(ids) - len(new)
    if done:
        print(f"{done} of {len(ids)} images were extracted by an earlier attempt", flush=True)
    if unfinished:
        cache.link_reusable(state, new)
        if reused := len(new & cache.ReusableRows(state).ids):
            print(f"{reused} images are taken from earlier extractions, {len(new) - reused} are new", flush=True)
    progress = Progress(len(ids), "images", start=done)
    items = [(number, shards[number]) for number in unfinished]
    for images in fan_out(items, partial(_ShardEncoder, config, base, root, state), config.hardware):
        done += images
        progress.update(done)
    return [cache.FinishedShard.read(cache.metadata_path(state, number)) for number in range(len(shards))]


class _ShardEncoder:
    """Writes shards on one device, from new and from reusable rows; yields numbers of images."""

    def __init__(self, config: Config, base: Path, root: Path, state: Path) -> None:
        self._config, self._base, self._root, self._state = config, base, root, state
        self._reusable = cache.ReusableRows(state)

    def __call__(self, shards: Iterable[tuple[int, list[str]]]) -> Iterator[int]:
        with friendly_io_errors(self._state, "embeddings"), EmbeddingsWriter(self._state) as writer:
            for number, ids in shards:
                rows = {name: self._reusable.row(name) for name in ids if name in self._reusable.ids}
                yield len(rows)
                if new := [name for name in ids if name not in rows]:
                    for name, row in self._encoder.rows(new):
                        rows[name] = row
                        yield 1
                writer.write(number, ids, rows)

    @cached_property
    def _encoder(self) -> Encoder:
        hardware, model = self._config.hardware, self._config.model
        device = configure_device(hardware.device, hardware.threads)
        encoders = load_encoders(model.family, self._base, model.load_options(self._root), device)
        dtype, reader = getattr(torch, self._config.extract.dtype), ImageReader(self._root / DATASET)
        return Encoder(encoders, reader, device, hardware.micro_batch_size, dtype, hardware.prefetch)


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
