"""Folders of samples: images and ``manifest.jsonl``, the interface between ``generate`` and ``score``."""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from reca.data.image_formats import BadImage, signature
from reca.data.images import decode
from reca.runtime.errors import UserError
from reca.runtime.files import write_text

if TYPE_CHECKING:
    from torch import Tensor

    from reca.models.base import UnifiedModel
    from reca.models.sampling import Sampling

MANIFEST = "manifest.jsonl"
FORMATS = ("PNG", "JPEG", "WEBP")
"""Image formats of samples made elsewhere; a judge accepts all these formats."""
Row = dict[str, Any]
"""One line of a manifest: a sample, or the plan of a sample."""
Pixels = NDArray[np.uint8]
"""(H, W, 3) RGB"""


class UnreadableSample(Exception):
    """A sample without a readable image: it counts as failed and gets no score."""


def row_key(row: Row) -> str:
    """Return the key of a sample, unique within its benchmark."""
    return f"{row['prompt_id']}/{row['index']}"


def write_manifest(folder: Path, rows: Iterable[Row]) -> None:
    """Write ``manifest.jsonl`` atomically."""
    write_text(folder / MANIFEST, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_manifest(folder: Path) -> list[Row]:
    """Read ``manifest.jsonl``.

    Raises:
        UserError: The manifest is missing or damaged.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(f"{path} is missing: make the samples first with `reca generate {' '.join(folder.parts[-2:])}`")
    try:
        return [json.loads(line) for line in path.read_text().split("\n") if line]  # texts may hold other line ends
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); delete {folder} and run `reca generate` again") from None


def to_pixels(images: "Tensor") -> list[Pixels]:
    """Convert images (B, 3, H, W) in [-1, 1] to 8-bit RGB."""
    scaled = ((images.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round()
    return list(scaled.byte().permute(0, 2, 3, 1).contiguous().numpy())


def to_tensor(pixels: Sequence[Pixels]) -> "Tensor":
    """Convert 8-bit RGB images of equal size to (B, 3, H, W) in [-1, 1]; the inverse of :func:`to_pixels`."""
    import torch

    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1


def save_png(pixels: Pixels, path: Path) -> None:
    """Write an image atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")  # without atomic_file's two fsync per file: samples are thousands
    Image.fromarray(pixels).save(temporary, "PNG")
    os.replace(temporary, path)


def read_image(folder: Path, row: Row, key: str = "file") -> Pixels:
    """Read an image of a sample: PNG, JPEG or WebP, with the pixel limit of :func:`reca.data.images.decode`.

    Args:
        folder: The folder of samples.
        row: The sample; ``box``, if present, is the part of the file that counts (left, top, right, bottom), and
            ``missing`` marks an image made elsewhere that was not there when the folder was listed.
        key: The member of the row that names the file.

    Raises:
        UserError: The manifest names the file, but it is missing.
        UnreadableSample: The file is not such an image, has too many pixels, or is marked as missing.
    """
    path = folder / row[key]
    if row.get("missing"):
        raise UnreadableSample(f"{row[key]} is missing")
    if not path.is_file():
        raise UserError(
            f"{path} is missing, although {MANIFEST} names it; delete {folder} and run `reca generate` again"
        )
    data = path.read_bytes()
    try:
        if (file_format := signature(data)) not in {*FORMATS, None}:
            raise BadImage("unsupported", f"{file_format} is not one of {', '.join(FORMATS)}")
        pixels = np.asarray(decode(data))
    except BadImage as error:
        raise UnreadableSample(f"{path.name}: {error}") from None
    if box := row.get("box"):
        x0, y0, x1, y1 = box
        pixels = pixels[y0:y1, x0:x1]
    return pixels


def group_by_size(images: Sequence[Pixels | None]) -> list[list[int]]:
    """Return the indices of the images, grouped by size; ``None`` stands for an unreadable image and is left out."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, image in enumerate(images):
        if image is not None:
            groups.setdefault(image.shape, []).append(index)
    return list(groups.values())


def first_per_category(prompts: Sequence[Row], limit: int | None) -> list[Row]:
    """Return the first ``limit`` prompts of every category; all prompts if ``limit`` is ``None``."""
    counts: dict[str, int] = {}
    first = []
    for prompt in prompts:
        counts[prompt["category"]] = counts.get(prompt["category"], 0) + 1
        if limit is None or counts[prompt["category"]] <= limit:
            first.append(prompt)
    return first


def draw_samples(model: "UnifiedModel", rows: Sequence[Row], sampling: "Sampling", folder: Path) -> list[Row]:
    """Generate an image for the ``prompt`` and ``seed`` of every row, and save it as ``file``."""
    from reca.runtime.seeding import SampleRng

    images = model.generate([row["prompt"] for row in rows], sampling, SampleRng([row["seed"] for row in rows]))
    for row, pixels in zip(rows, to_pixels(images), strict=True):
        save_png(pixels, folder / row["file"])
    return [dict(row) for row in rows]


def edit_samples(
    model: "UnifiedModel", rows: Sequence[Row], originals: Sequence[Pixels], sampling: "Sampling", folder: Path
) -> list[Row]:
    """Edit the original of every row by its ``prompt``; save the result as ``file``, the original as ``original``.

    Raises:
        UserError: The model's family does not edit.
    """
    import torch

    from reca.runtime.seeding import SampleRng

    make_edits = getattr(model, "edit", None)  # reca.models.base.ImageEditor
    if make_edits is None:
        family = getattr(model, "family", type(model).__name__)
        raise UserError(f"the family {family} does not edit images; leave this benchmark out of evaluate.benchmarks")
    device = next(model.parameters()).device
    images = [torch.from_numpy(pixels.copy()).permute(2, 0, 1).float().to(device) / 127.5 - 1 for pixels in originals]
    edits = make_edits(images, [row["prompt"] for row in rows], sampling, SampleRng([row["seed"] for row in rows]))
    for row, before, after in zip(rows, originals, edits, strict=True):
        save_png(before, folder / row["original"])
        save_png(to_pixels(after[None])[0], folder / row["file"])
    return [dict(row) for row in rows]
