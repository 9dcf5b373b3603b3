"""Images as data URIs: small ones pixel by pixel, large ones reduced, so that the page stays one light file."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

SMALL = 64  # pixels; up to here an image is shown enlarged by a whole number, each of its pixels a square
LARGEST = 192  # pixels of the longer side that is embedded of a large image
SHOWN, SHOWN_NARROW = 96, 72  # pixels on the page, at most, at desk and at phone width


@dataclass(frozen=True)
class Picture:
    """One embedded image and the size at which it is shown (CSS pixels)."""

    uri: str
    width: int
    height: int
    narrow_width: int
    pixelated: bool


def open_picture(path: Path) -> "Image | None":
    """Read one image as RGB; ``None`` where the file is missing or is no image."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as opened:
            return opened.convert("RGB")
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError):
        return None


def load_picture(path: Path) -> Picture | None:
    """Embed one image; ``None`` where the file is missing or is no image (the page then says so)."""
    image = open_picture(path)
    if image is None:
        return None
    longest, pixelated = max(image.size), max(image.size) <= SMALL
    if pixelated:
        uri = _encode(image, "PNG", optimize=True)
        factor, narrow = (float(max(1, shown // longest)) for shown in (SHOWN, SHOWN_NARROW))
    else:
        reduced = image.copy()
        reduced.thumbnail((LARGEST, LARGEST))
        uri = _encode(reduced, "WEBP", quality=82)
        factor, narrow = (shown / longest for shown in (SHOWN, SHOWN_NARROW))
    width, height = image.size
    return Picture(uri, round(width * factor), round(height * factor), round(width * narrow), pixelated)


def _encode(image: "Image", kind: str, **options: bool | int) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
