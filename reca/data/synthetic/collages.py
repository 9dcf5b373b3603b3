"""Cut-outs of photographs laid over plain grounds: pictures of things whose ground truth is known exactly.

A cut-out is a PNG with an alpha channel, its name in a ``.txt`` beside it, as in Debian's package
``tuxpaint-stamps-default``. A collage of one to four of them is a pure function of the cut-outs and ``(seed, index)``.
It is laid out as a scene of shapes is (:mod:`reca.data.synthetic.scenes`), and so has its captions, questions and
GenEval metadata; things never overlap, so a thing's mask is where its own alpha is at least one half.
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
from reca.data.synthetic.scenes import Scene, Shape, place, relation
from reca.runtime.errors import UserError

PACKAGE = "tuxpaint-stamps-default"
PACKAGE_FOLDER = Path("/usr/share/tuxpaint/stamps")
CAPTION = re.compile(r"[Aa]n? ([a-z][a-z-]*(?: [a-z][a-z-]*){0,2})[.!]?")
SEVERAL_WORDS = re.compile(r"\b(?:and|at|in|of|on|with)\b")
"""``a pair of pliers``: more than the name of a thing."""
LEAST_SIDE = 48
"""Cut-outs whose longer side has fewer pixels would be enlarged beyond recognition."""
OPAQUE = 128
"""Pixels with this alpha or more belong to the thing."""
GROUNDS = {"plain": 1, "gradient": 2, "clouds": 8}
"""Kinds of background, and how many colours a side they are enlarged from."""
MAX_RADIUS = 0.35
"""Half of a thing's longer side, as a fraction of the image side; neighbours and edges often leave less."""

Cutouts = Mapping[str, Sequence["Cutout"]]
"""By noun."""


@dataclass(frozen=True, slots=True)
class Cutout:
    """A picture of one thing; ``file`` is its path below the folder ``folder``."""

    noun: str
    file: str
    folder: Path


@dataclass(frozen=True, slots=True)
class Collage:
    """Things and where they stand; ``scene`` has a shape for each of ``cutouts``, of its noun and without colour."""

    scene: Scene
    cutouts: tuple[Cutout, ...]
    ground: NDArray[np.uint8]
    """(n, n, 3) RGB, from which the background is enlarged."""


def read_cutouts(folder: Path) -> dict[str, list[Cutout]]:
    """All cut-outs below a folder that can be used and named, by noun; says how many are passed over.

    Raises:
        UserError: There are none; the message says where they come from.
    """
    require(folder)
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    found: dict[str, list[Cutout]] = {}
    for file in files:
        noun = noun_of(file.removesuffix(".png"), _noun_in((folder / file).with_suffix(".txt")))
        if noun and _usable(folder / file):
            found.setdefault(noun, []).append(Cutout(noun, file, folder))
    if not found:
        raise UserError(
            f"none of the {len(files)} PNG files in {folder} is a cut-out: each needs transparent parts, at least "
            f"{LEAST_SIDE} pixels on its longer side, and its name beside it in a .txt: 'A teapot.'"
        )
    count = sum(map(len, found.values()))
    print(f"{count} cut-outs of {len(found)} things in {folder}, {len(files) - count} other PNG files passed over")
    return dict(sorted(found.items()))


def require(folder: Path) -> None:
    """Stop where there is no folder of cut-outs.

    Raises:
        UserError: It is not there; the message names the package that brings one.
    """
    if not folder.is_dir():
        raise UserError(
            f"there is no folder {folder}: install Debian's package of cut-outs with `apt-get install {PACKAGE}` "
            f"(it comes in {PACKAGE_FOLDER}), or name a folder of your own (data.path): PNG files with transparent "
            "parts, each with its name beside it in a .txt: 'A teapot.'"
        )


def _noun_in(caption: Path) -> str | None:
    """The noun of ``A teapot.``, if a caption is of that form; translations follow in further lines."""
    if not caption.is_file():
        return None
    match = CAPTION.fullmatch(caption.read_text(encoding="utf-8", errors="replace").partition("\n")[0].strip())
    return match[1] if match and not SEVERAL_WORDS.search(match[1]) else None


def _usable(file: Path) -> bool:
    try:
        return max(_thing(file).size) >= LEAST_SIDE
    except Exception:  # no cut-out, or damaged, which makes Pillow raise nearly anything
        return False


@lru_cache(maxsize=64)
def _thing(file: Path) -> Image.Image:
    """The RGBA part of a cut-out that is not transparent; a shadow beyond the thing itself is cut off."""
    with Image.open(file, formats=["PNG"]) as image:
        layer = image.convert("RGBA")
    alpha = np.asarray(layer.getchannel("A")) >= OPAQUE
    if alpha.all() or not alpha.any():
        raise ValueError(f"{file} is no cut-out: all or nothing of it is transparent")
    return layer.crop(_box(alpha))


def sample_collage(cutouts: Cutouts, seed: int, index: int) -> Collage:
    """Draw collage ``index`` of the data set ``seed``: the same cut-outs and numbers always give the same one."""
    rng = random.Random(f"collage-{seed}-{index}")
    nouns, count = list(cutouts), rng.choice([1, 2, 2, 3, 3, 4, 4])
    # As in scenes of shapes, two in five repeat one noun, so that counts above one are common.
    repeated = rng.choice(nouns) if rng.random() < 0.4 else None
    chosen = [repeated or rng.choice(nouns) for _ in range(count)]
    if repeated and count > 2 and rng.random() < 0.3:
        chosen[-1] = rng.choice(nouns)
    return arrange(chosen, cutouts, rng)


def arrange(nouns: Sequence[str], cutouts: Cutouts, rng: random.Random, where: str | None = None) -> Collage:
    """Draw a cut-out for every noun, and a place for it.

    Args:
        nouns: What is to be seen.
        cutouts: What there is to choose from.
        rng: Draws.
        where: The relation in which the first is to stand to the second; ``None``: any.
    """
    while True:
        centres = place(rng, len(nouns))
        shapes = tuple(
            Shape(noun, "", *centre, rng.uniform(0.6, 0.95) * _room(centre, [c for c in centres if c is not centre]))
            for noun, centre in zip(nouns, centres, strict=True)
        )
        if where is None or relation(*shapes[:2]) == where:
            break
    kind = rng.choice(list(GROUNDS))
    # Of middle brightness: both the black and the white of photographs stand out against it.
    levels = [rng.randrange(64, 192) for _ in range(GROUNDS[kind] ** 2 * 3)]
    ground = np.array(levels, np.uint8).reshape(GROUNDS[kind], GROUNDS[kind], 3)
    return Collage(Scene(shapes, kind, 0.0), tuple(rng.choice(cutouts[noun]) for noun in nouns), ground)


def _room(centre: tuple[float, float], others: Sequence[tuple[float, float]]) -> float:
    """How far a square around ``centre`` may reach without touching an edge, or the square of another."""
    x, y = centre
    gaps = [max(abs(x - a), abs(y - b)) / 2 for a, b in others]
    return min(x, 1 - x, y, 1 - y, MAX_RADIUS, *gaps)


def compose(collage: Collage, size: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Draw a collage.

    Args:
        collage: What stands where.
        size: Side in pixels; below 64, rounding could make neighbours touch.

    Returns:
        (size, size, 3) RGB, and the masks (N, size, size) of its N things.

    Raises:
        UserError: A thing is so thin that nothing of it is left at this size.
    """
    image = Image.fromarray(collage.ground).resize((size, size), Image.Resampling.BICUBIC)
    masks = np.zeros((len(collage.cutouts), size, size), np.bool_)
    for mask, cutout, shape in zip(masks, collage.cutouts, collage.scene.shapes, strict=True):
        thing = _thing(cutout.folder / cutout.file)
        scale = 2 * shape.radius * size / max(thing.size)
        width, height = (max(1, int(side * scale)) for side in thing.size)
        left, top = round(shape.x * size - width / 2), round(shape.y * size - height / 2)
        layer = thing.resize((width, height), Image.Resampling.BICUBIC)
        image.paste(layer, (left, top), layer)
        mask[top : top + height, left : left + width] = np.asarray(layer.getchannel("A")) >= OPAQUE
        if not mask.any():
            raise UserError(f"{cutout.file} shows nothing at {width}x{height} pixels: make images larger, or remove it")
    return np.asarray(image), masks


def objects(collage: Collage, masks: NDArray[np.bool_]) -> list[dict[str, Any]]:
    """The things of a collage as its ground truth tells them.

    Returns:
        For each, ``class``, ``file``, ``box`` (left, top, right, bottom in pixels, right and bottom one beyond the
        last) and ``mask`` (:func:`run_lengths`).
    """
    return [
        {"class": cutout.noun, "file": cutout.file, "box": list(_box(mask)), "mask": run_lengths(mask)}
        for cutout, mask in zip(collage.cutouts, masks, strict=True)
    ]


def _box(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def run_lengths(mask: NDArray[np.bool_]) -> dict[str, list[int]]:
    """A mask as COCO's run lengths, which ``pycocotools`` reads (``mask.frPyObjects``).

    Args:
        mask: (height, width).

    Returns:
        ``size``: height and width. ``counts``: how many pixels in a row are outside, inside, outside and so on, column
        by column from the top left; the first may be 0.
    """
    pixels = mask.T.ravel()
    edges = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    counts = np.diff([*([0] if pixels[0] else []), 0, *edges, pixels.size])
    return {"size": list(mask.shape), "counts": counts.tolist()}
