"""Images as data URIs: small ones pixel by pixel, large ones reduced, so that the page stays one light file."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

PIXELATED_MAX_SIZE = 64  # pixels; up to here an image is enlarged by a whole number, each of its pixels a square
EMBEDDED_MAX_SIZE = 192  # pixels; the longer side of larger images is reduced to this
DISPLAY_SIZE, NARROW_DISPLAY_SIZE = 96, 72  # CSS pixels of the longer side, at desk and at phone width


@dataclass(frozen=True)
class Thumbnail:
    """An embedded image and its size on the page (CSS pixels)."""

    uri: str
    width: int
    height: int
    narrow_width: int
    pixelated: bool


def open_image(path: Path) -> "Image | None":
    """Read one image as RGB; ``None`` when the file is missing or not an image."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as opened:
            return opened.convert("RGB")
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError):
        return None


def load_thumbnail(path: Path) -> Thumbnail | None:
    """Embed one image; ``None`` when the file is missing or not an image (the page then says so)."""
    image = open_image(path)
    if image is None:
        return None
    longest, pixelated = max(image.size), max(image.size) <= PIXELATED_MAX_SIZE
    if pixelated:
        uri = _encode(image, "PNG", optimize=True)
        factor, narrow = (float(max(1, size // longest)) for size in (DISPLAY_SIZE, NARROW_DISPLAY_SIZE))
    else:
        reduced = image.copy()
        reduced.thumbnail((EMBEDDED_MAX_SIZE, EMBEDDED_MAX_SIZE))
        uri = _encode(reduced, "WEBP", quality=82)
        factor, narrow = (size / longest for size in (DISPLAY_SIZE, NARROW_DISPLAY_SIZE))
    width, height = image.size
    return Thumbnail(uri, round(width * factor), round(height * factor), round(width * narrow), pixelated)


def _encode(image: "Image", kind: str, **options: bool | int) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
