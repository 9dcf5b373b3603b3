"""Samples as a folder: PNG files and ``manifest.jsonl``, the contract between ``generate`` and ``score``."""

import io
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from reca.runtime.errors import UserError
from reca.runtime.files import write_text

if TYPE_CHECKING:
    from torch import Tensor

MANIFEST = "manifest.jsonl"
Row = dict[str, Any]
"""One line of a manifest: a sample, or the plan of one before it is made."""
Pixels = NDArray[np.uint8]
"""(H, W, 3) RGB"""


class UnreadableSample(Exception):
    """A sample that is there but is no image: counted as failed, never scored by guess."""


def row_key(row: Row) -> str:
    """What tells the samples of a benchmark apart."""
    return f"{row['prompt_id']}/{row['index']}"


def write_manifest(folder: Path, rows: Iterable[Row]) -> None:
    """Write ``manifest.jsonl`` whole."""
    write_text(folder / MANIFEST, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_manifest(folder: Path) -> list[Row]:
    """Read ``manifest.jsonl``.

    Raises:
        UserError: It is missing or damaged.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(f"{path} is missing: make the samples first with `reca generate {' '.join(folder.parts[-2:])}`")
    try:
        return [json.loads(line) for line in path.read_text().split("\n") if line]  # texts may hold other line ends
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); delete {folder} and run `reca generate` again") from None


def to_pixels(images: "Tensor") -> list[Pixels]:
    """Images (B, 3, H, W) in [-1, 1] as 8-bit RGB."""
    scaled = ((images.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round()
    return list(scaled.byte().permute(0, 2, 3, 1).contiguous().numpy())


def to_tensor(pixels: Sequence[Pixels]) -> "Tensor":
    """8-bit RGB images of one size as (B, 3, H, W) in [-1, 1]; undoes :func:`to_pixels`."""
    import torch

    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1


def save_png(pixels: Pixels, path: Path) -> None:
    """Write an image in one step (name changed when it is complete)."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    temporary = path.with_name(f".{path.name}")
    temporary.write_bytes(buffer.getvalue())
    os.replace(temporary, path)


def read_image(folder: Path, row: Row, key: str = "file") -> Pixels:
    """An image of a benchmark, perhaps made elsewhere: PNG, JPEG or WebP; perhaps a part of a larger one.

    Args:
        folder: Where the samples lie.
        row: The sample; its ``box``, if there is one, is the part that counts: left, top, right, bottom.
        key: The row's entry that names the file.

    Raises:
        UserError: The file is missing though the manifest names it.
        UnreadableSample: The file is no image, or was missing when images from elsewhere were listed.
    """
    path = folder / row[key]
    if row.get("missing"):
        raise UnreadableSample(f"{row[key]} is not there")
    if not path.is_file():
        raise UserError(f"{path} is named by {MANIFEST} but missing; delete {folder} and run `reca generate` again")
    try:
        with Image.open(path, formats=["PNG", "JPEG", "WEBP"]) as image:
            pixels = np.asarray(image.convert("RGB"))
    except Exception as error:  # damaged files make Pillow raise nearly anything
        raise UnreadableSample(f"{path.name}: {error}") from None
    if box := row.get("box"):
        left, top, right, bottom = box
        pixels = pixels[top:bottom, left:right]
    return pixels


def same_size(images: Sequence[Pixels | None]) -> list[list[int]]:
    """The numbers of the images that can be looked at together; ``None`` stands for one that cannot be looked at."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for number, image in enumerate(images):
        if image is not None:
            groups.setdefault(image.shape, []).append(number)
    return list(groups.values())
