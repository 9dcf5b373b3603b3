"""Real image files: made by Pillow, and the photographs that two packages ship."""

import importlib.util
import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw


def picture(width: int = 48, height: int = 32, seed: int = 0) -> Image.Image:
    """A smooth RGB image without symmetries, so that any turn or mix-up of channels shows."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The bytes of an image file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(seed: int = 0, width: int = 48, height: int = 32) -> bytes:
    """The bytes of a PNG that no other seed has."""
    return encoded(picture(width, height, seed), "PNG")


def cutout(color: tuple[int, int, int], width: int = 90, height: int = 60) -> bytes:
    """The bytes of a PNG of an ellipse in one colour with a bite taken out, and nothing around it."""
    image = Image.new("RGBA", (width + 20, height + 10))  # empty margins, as real cut-outs have
    draw = ImageDraw.Draw(image)
    draw.ellipse((12, 3, 12 + width, 3 + height), fill=color)
    draw.rectangle((12 + width // 2, 3, 12 + width, 3 + height // 3), fill=(0, 0, 0, 0))
    return encoded(image, "PNG")


def cutout_files(*nouns: str) -> dict[str, bytes]:
    """Files of a folder of cut-outs: one of each noun, all in colours of their own, captioned ``A <noun>.``"""
    files: dict[str, bytes] = {}
    for number, noun in enumerate(nouns):
        color = (255, 5 * number, 0) if number % 2 else (0, 5 * number, 255)
        files[f"mine/{noun}.png"] = cutout(color, *((90, 60) if number % 3 else (60, 90)))
        files[f"mine/{noun}.txt"] = f"A{'n' if noun[0] in 'aeiou' else ''} {noun}.\nfr.utf8=Une chose.\n".encode()
    return files


def photographs() -> list[Path]:
    """Photographs that scikit-image and scikit-learn ship: JPEG, PNG (RGB, RGBA, greyscale)."""
    names = ("astronaut.png", "camera.png", "chelsea.png", "coffee.png", "rocket.jpg", "retina.jpg", "logo.png")
    from_sklearn = ("china.jpg", "flower.jpg")
    skimage, sklearn = _package("skimage") / "data", _package("sklearn") / "datasets" / "images"
    return [skimage / name for name in names] + [sklearn / name for name in from_sklearn]


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)  # only its place: importing it takes seconds
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent
