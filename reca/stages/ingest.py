"""``ingest``: turn images from any source into a data set of upright, distinct, readable images."""

import json
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from reca.config import CollagesData, Config, ScenesData
from reca.data.image_formats import BadImage
from reca.data.manifest import assign_split, ensure_one_held_out, write_manifest
from reca.data.shards import DecodedImage, ShardWriter, TempImageStore
from reca.data.sources import open_source
from reca.data.sources.base import ImageSource, Item, Rejected
from reca.runtime.errors import UserError
from reca.runtime.files import atomic_folder, write_text
from reca.runtime.progress import Progress
from reca.stages.result import write_result

A = TypeVar("A")
B = TypeVar("B")
DATASET = "outputs/dataset"
QUARANTINE = "quarantine.jsonl"
BYTES_PER_PIXEL = 8
"""The most that an image file can need: 16-bit RGBA, not compressed."""
HEADROOM_BYTES = 16 * 2**20


def ingest(config: Config, root: Path) -> None:
    """Read the images that ``config.data`` names; write ``outputs/dataset``.

    The same images give the same bytes, independent of their order, file times and the number of threads.

    Raises:
        UserError: The source cannot be read, too many of its images are bad, or none is usable.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")  # errors of images are recorded in the quarantine file
    folder = root / DATASET
    try:
        with atomic_folder(folder) as unfinished:
            _ingest(config, root, unfinished)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"cannot write {folder}: {reason}; make room or make it writable, then run again") from error


def _ingest(config: Config, root: Path, folder: Path) -> None:
    max_pixels, min_side = _limits(config)
    source = open_source(config.data, config.seed, root, max_pixels * BYTES_PER_PIXEL + HEADROOM_BYTES)
    store = TempImageStore(folder.parent)
    rejected = _read_all(config, source, store, max_pixels, min_side)
    _check(config, root, len(store) + store.duplicates, rejected)
    rows = _write_shards(config, store, folder)
    if config.data.held_out_fraction > 0:
        ensure_one_held_out(rows)
    splits = Counter(row["split"] for row in rows)
    if not splits["train"]:
        fraction = config.data.held_out_fraction
        raise UserError(f"all {len(rows)} images are held out (data.held_out_fraction={fraction}): none to train on")
    if not splits["held_out"]:
        print("ingest: no image is held out (data.held_out_fraction)")
    write_manifest(folder, rows)
    write_text(folder / QUARANTINE, _quarantine_lines(rejected))
    reasons = dict(sorted(Counter(entry.reason for entry in rejected).items()))
    facts = {"images": len(rows), "train": splits["train"], "held_out": splits["held_out"]}
    facts |= {"duplicates": store.duplicates, "quarantined": len(rejected)}
    write_result(folder, "ingest", config, ("data", "seed"), **facts, reasons=reasons)
    print("ingest: " + ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in facts.items()))


def _limits(config: Config) -> tuple[int, int]:
    if isinstance(config.data, ScenesData | CollagesData):
        return config.data.image_size**2, 1
    return config.data.max_pixels, config.data.min_side


def _read_all(
    config: Config, source: ImageSource, store: TempImageStore, max_pixels: int, min_side: int
) -> list[Rejected]:
    def examine(entry: Item | Rejected) -> DecodedImage | Rejected:
        if isinstance(entry, Rejected):
            return entry
        try:
            return DecodedImage.from_item(entry, max_pixels, min_side)
        except BadImage as bad:
            return Rejected(entry.source, bad.reason, bad.detail)

    rejected: list[Rejected] = []
    progress = Progress(source.total, source.unit)
    limit = config.data.num_images if source.stop_early else None
    threads = config.hardware.threads
    with ThreadPoolExecutor(threads) as pool:
        for result in _in_order(pool, examine, source, ahead=2 * threads):
            if isinstance(result, Rejected):
                rejected.append(result)
            else:
                store.add(result)
            progress.update(source.done, f"{len(store)} good, {store.duplicates} duplicates, {len(rejected)} bad")
            if limit is not None and len(store) >= limit:
                break
    return sorted(rejected, key=lambda entry: (entry.source, entry.reason))


def _in_order(pool: Executor, function: Callable[[A], B], inputs: Iterable[A], ahead: int) -> Iterator[B]:
    """Map on a pool in order, with at most ``ahead`` inputs in memory, because a source may be larger than it."""
    pending: deque[Future[B]] = deque()
    for entry in inputs:
        pending.append(pool.submit(function, entry))
        if len(pending) >= ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _check(config: Config, root: Path, good: int, rejected: list[Rejected]) -> None:
    """Raise if too many images are bad, and write the list of bad images for the user."""
    total, allowed = good + len(rejected), config.data.max_bad_fraction
    if good and len(rejected) <= allowed * total:
        return
    if not total:
        raise UserError(f"data.source={config.data.source} holds no image; look at the section data of params.yaml")
    quarantine = root / config.paths.state / "ingest" / QUARANTINE
    write_text(quarantine, _quarantine_lines(rejected))
    worst = ", ".join(f"{reason} {count}" for reason, count in Counter(r.reason for r in rejected).most_common(4))
    share = f"{len(rejected)} of {total} images are bad ({len(rejected) / total:.1%}; {worst})"
    raise UserError(
        f"{share}; data.max_bad_fraction allows {allowed:.1%}. "
        f"Which ones and why: {quarantine}. Fix or remove them, or allow more with data.max_bad_fraction"
    )


def _write_shards(config: Config, store: TempImageStore, folder: Path) -> list[dict[str, Any]]:
    rows = []
    with ShardWriter(folder) as shards:
        for picture, stored in store.images(config.data.num_images):
            key, description = picture.sha256[:16], picture.description
            position = shards.add(key, picture.suffix, stored, description.ground_truth)
            row = {
                "id": key,
                "sha256": picture.sha256,
                "width": picture.width,
                "height": picture.height,
                "split": assign_split(picture.sha256, config.data.held_out_fraction),
                "source": picture.source,
                "caption": description.caption,
                "full_caption": description.full_caption,
                "ground_truth": json.dumps(description.ground_truth, sort_keys=True)
                if description.ground_truth
                else None,
            }
            rows.append(row | position)
    return rows


def _quarantine_lines(rejected: list[Rejected]) -> str:
    return "".join(json.dumps(asdict(entry), ensure_ascii=False) + "\n" for entry in rejected)
