"""Real image files of every kind, made by Pillow, and the photographs that two packages ship."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage
import sklearn
from PIL import Image

from reca.config import Config, compose

SKIMAGE = Path(skimage.__file__).parent / "data"
SKLEARN = Path(sklearn.__file__).parent / "datasets" / "images"


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


@pytest.fixture
def photographs() -> list[Path]:
    """Photographs that scikit-image and scikit-learn ship: JPEG, PNG (RGB, RGBA, greyscale) and GIF."""
    names = ("astronaut.png", "camera.png", "chelsea.png", "coffee.png", "rocket.jpg", "retina.jpg", "logo.png")
    return [SKIMAGE / name for name in names] + [SKLEARN / "china.jpg", SKLEARN / "flower.jpg"]


@pytest.fixture
def configured(tmp_path: Path) -> Callable[..., Config]:
    """A composed configuration of one source, with overrides in Hydra's grammar."""

    def configure(source: str, *overrides: str) -> Config:
        return compose([f"data={source}", "hardware.threads=2", *overrides])

    return configure


@pytest.fixture
def folder_of(tmp_path: Path) -> Callable[[dict[str, bytes]], Path]:
    """Write files below ``tmp_path/photos``."""

    def write(files: dict[str, bytes]) -> Path:
        folder = tmp_path / "photos"
        folder.mkdir(exist_ok=True)
        for name, data in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return folder

    return write
