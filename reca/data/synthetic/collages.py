"""Collages of photographic cut-outs on plain backgrounds, with exact ground truth.

A cut-out is a PNG with an alpha channel and its name in a ``.txt`` of the same stem, as in Debian's package
``tuxpaint-stamps-default``. A collage of 1 to 4 objects is a pure function of the cut-outs and ``(seed, index)``.
Its layout is that of a scene of shapes (:mod:`reca.data.synthetic.scenes`), so captions, questions and GenEval metadata
are shared. Objects never overlap, so an object's mask is where its alpha is at least one half.
"""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from reca.data.synthetic.cutout_nouns import noun_of
from reca.data.synthetic.scenes import Scene, Shape, relation, sample_centers
from reca.runtime.errors import UserError

PACKAGE = "tuxpaint-stamps-default"
PACKAGE_FOLDER = Path("/usr/share/tuxpaint/stamps")
CAPTION = re.compile(r"[Aa]n? ([a-z][a-z-]*(?: [a-z][a-z-]*){0,2})[.!]?")
SEVERAL_WORDS = re.compile(r"\b(?:and|at|in|of|on|with)\b")
"""``a pair of pliers``: more than the name of an object."""
MIN_SIDE = 48
"""Cut-outs with a shorter longest side, in pixels, would be enlarged beyond recognition."""
OPAQUE = 128
"""Pixels with this alpha or more belong to the object."""
BACKGROUND_COLORS = {"plain": 1, "gradient": 2, "clouds": 8}
"""Background -> number of random colours per side that it is enlarged from."""
MAX_RADIUS = 0.35
"""Limit of half an object's longest side, as a fraction of the image side; neighbours and edges often leave less."""

Cutouts = Mapping[str, Sequence["Cutout"]]
"""Noun -> its cut-outs."""


@dataclass(frozen=True, slots=True)
class Cutout:
    """An image of a single object; ``file`` is its path below ``folder``."""

    noun: str
    file: str
    folder: Path


@dataclass(frozen=True, slots=True)
class Collage:
    """Objects and their layout; ``scene`` has a shape for every cut-out, with its noun as kind and without colour."""

    scene: Scene
    cutouts: tuple[Cutout, ...]
    background: NDArray[np.uint8]
    """(n, n, 3) RGB, enlarged to the image size."""


def read_cutouts(folder: Path) -> dict[str, list[Cutout]]:
    """Return all usable cut-outs below a folder by noun; print how many files are skipped.

    Raises:
        UserError: There are none; the message says how to get them.
    """
    require_folder(folder)
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    cutouts: dict[str, list[Cutout]] = {}
    for file in files:
        noun = noun_of(file.removesuffix(".png"), _noun_in((folder / file).with_suffix(".txt")))
        if noun and _usable(folder / file):
            cutouts.setdefault(noun, []).append(Cutout(noun, file, folder))
    if not cutouts:
        raise UserError(
            f"none of the {len(files)} PNG files in {folder} is a cut-out: each needs transparent parts, at least "
            f"{MIN_SIDE} pixels on its longer side, and its name in a .txt of the same stem: 'A teapot.'"
        )
    count = sum(map(len, cutouts.values()))
    print(f"{count} cut-outs of {len(cutouts)} objects in {folder}, {len(files) - count} other PNG files skipped")
    return dict(sorted(cutouts.items()))


def require_folder(folder: Path) -> None:
    """Check that the folder of cut-outs exists.

    Raises:
        UserError: It does not exist; the message names the Debian package.
    """
    if not folder.is_dir():
        raise UserError(
            f"there is no folder {folder}: install Debian's package of cut-outs with `apt-get install {PACKAGE}` "
            f"(it installs {PACKAGE_FOLDER}), or set data.path to your own folder: PNG files with transparent "
            "parts, each with its name in a .txt of the same stem: 'A teapot.'"
        )


def _noun_in(caption: Path) -> str | None:
    """Return the noun of a caption like ``A teapot.``, else ``None``; later lines are translations."""
    if not caption.is_file():
        return None
    match = CAPTION.fullmatch(caption.read_text(encoding="utf-8", errors="replace").partition("\n")[0].strip())
    return match[1] if match and not SEVERAL_WORDS.search(match[1]) else None


def _usable(file: Path) -> bool:
    try:
        return max(_load_object(file).size) >= MIN_SIDE
    except Exception:  # damaged files make Pillow raise almost any exception
        return False


@lru_cache(maxsize=64)
def _load_object(file: Path) -> Image.Image:
    """Load a cut-out as RGBA, cropped to its opaque pixels (without a shadow beyond them)."""
    with Image.open(file, formats=["PNG"]) as image:
        layer = image.convert("RGBA")
    alpha = np.asarray(layer.getchannel("A")) >= OPAQUE
    if alpha.all() or not alpha.any():
        raise ValueError(f"{file} is not a cut-out: it needs both transparent and opaque pixels")
    return layer.crop(_box(alpha))


def sample_collage(cutouts: Cutouts, seed: int, index: int) -> Collage:
    """Sample collage ``index`` of the data set ``seed``, deterministically."""
    rng = random.Random(f"collage-{seed}-{index}")
    nouns, count = list(cutouts), rng.choice([1, 2, 2, 3, 3, 4, 4])
    # As in scenes of shapes, two in five repeat one noun, so that counts above one are common.
    repeated = rng.choice(nouns) if rng.random() < 0.4 else None
    sampled = [repeated or rng.choice(nouns) for _ in range(count)]
    if repeated and count > 2 and rng.random() < 0.3:
        sampled[-1] = rng.choice(nouns)
    return arrange(sampled, cutouts, rng)


def arrange(nouns: Sequence[str], cutouts: Cutouts, rng: random.Random, where: str | None = None) -> Collage:
    """Sample a cut-out and a position for every noun; ``where`` relates the first object to the second."""
    while True:
        centres = sample_centers(rng, len(nouns))
        shapes = tuple(
            Shape(noun, "", *centre, rng.uniform(0.6, 0.95) * _room(centre, [c for c in centres if c is not centre]))
            for noun, centre in zip(nouns, centres, strict=True)
        )
        if where is None or relation(*shapes[:2]) == where:
            break
    kind = rng.choice(list(BACKGROUND_COLORS))
    # Medium brightness: both black and white parts of photographs stay visible against it.
    levels = [rng.randrange(64, 192) for _ in range(BACKGROUND_COLORS[kind] ** 2 * 3)]
    background = np.array(levels, np.uint8).reshape(BACKGROUND_COLORS[kind], BACKGROUND_COLORS[kind], 3)
    return Collage(Scene(shapes, kind, 0.0), tuple(rng.choice(cutouts[noun]) for noun in nouns), background)


def _room(centre: tuple[float, float], neighbours: Sequence[tuple[float, float]]) -> float:
    """Return the largest half side of a square around ``centre`` that touches no edge and no neighbour's square."""
    x, y = centre
    gaps = [max(abs(x - a), abs(y - b)) / 2 for a, b in neighbours]
    return min(x, 1 - x, y, 1 - y, MAX_RADIUS, *gaps)


def compose(collage: Collage, size: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Draw a collage.

    Args:
        collage: The layout.
        size: Side in pixels; below 64, rounding could make neighbours touch.

    Returns:
        (size, size, 3) RGB, and the masks (N, size, size) of its N objects.

    Raises:
        UserError: An object is so thin that it vanishes at this size.
    """
    image = Image.fromarray(collage.background).resize((size, size), Image.Resampling.BICUBIC)
    masks = np.zeros((len(collage.cutouts), size, size), np.bool_)
    for mask, cutout, shape in zip(masks, collage.cutouts, collage.scene.shapes, strict=True):
        cutout_image = _load_object(cutout.folder / cutout.file)
        scale = 2 * shape.radius * size / max(cutout_image.size)
        width, height = (max(1, int(side * scale)) for side in cutout_image.size)
        left, top = round(shape.x * size - width / 2), round(shape.y * size - height / 2)
        layer = cutout_image.resize((width, height), Image.Resampling.BICUBIC)
        image.paste(layer, (left, top), layer)
        mask[top : top + height, left : left + width] = np.asarray(layer.getchannel("A")) >= OPAQUE
        if not mask.any():
            raise UserError(
                f"{cutout.file} vanishes at {width}x{height} pixels: raise data.image_size, or remove the file"
            )
    return np.asarray(image), masks


def objects(collage: Collage, masks: NDArray[np.bool_]) -> list[dict[str, Any]]:
    """Return the annotations of a collage's objects.

    Returns:
        Per object ``class``, ``file``, ``box`` (left, top, right, bottom in pixels, right and bottom exclusive) and
        ``mask`` (:func:`encode_rle`).
    """
    return [
        {"class": cutout.noun, "file": cutout.file, "box": list(_box(mask)), "mask": encode_rle(mask)}
        for cutout, mask in zip(collage.cutouts, masks, strict=True)
    ]


def _box(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def encode_rle(mask: NDArray[np.bool_]) -> dict[str, list[int]]:
    """Encode a mask as COCO run lengths, which ``pycocotools`` reads (``mask.frPyObjects``).

    Args:
        mask: (height, width).

    Returns:
        ``size``: height and width. ``counts``: lengths of runs outside, inside, outside and so on, column by column
        from the top left; the first may be 0.
    """
    pixels = mask.T.ravel()
    edges = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    counts = np.diff([*([0] if pixels[0] else []), 0, *edges, pixels.size])
    return {"size": list(mask.shape), "counts": counts.tolist()}
