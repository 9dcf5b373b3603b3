"""Real image files: made by Pillow, and the photographs that two packages ship."""

import importlib.util
import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


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
