"""The interface of image sources, and the items that they yield."""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".gif", ".bmp", ".avif"})
TEXT_SUFFIXES = frozenset({".txt", ".json"})


@dataclass(frozen=True, slots=True)
class Description:
    """An image's captions and ground truth."""

    caption: str | None = None
    full_caption: str | None = None
    ground_truth: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Item:
    """Bytes that should be an image; ``source`` names them in messages (a relative path, a URL, a row)."""

    source: str
    data: bytes
    description: Description = Description()


@dataclass(frozen=True, slots=True)
class Rejected:
    """An entry that is not an image; a row of ``quarantine.jsonl``."""

    source: str
    reason: str
    detail: str


class ImageSource(ABC):
    """Images in a fixed order, read in sequence; iterate once.

    ``done`` of ``total`` units are read; both only serve the progress display.
    """

    unit: ClassVar[str] = "images"
    stop_early: ClassVar[bool] = False
    """Reading stops after the first ``data.num_images`` good images, because the source may be very large."""
    total: int = 0
    done: int = 0

    @abstractmethod
    def __iter__(self) -> Iterator[Item | Rejected]:
        """Yield every image, or the reason why an entry is not one."""


def describe(text: bytes | None, json_text: bytes | None) -> Description:
    """Parse the files next to an image: the caption ``key.txt``, and ``key.json``.

    The JSON object may have ``caption`` and ``full_caption``; if it has GenEval ``metadata`` or ``questions``, its
    other keys are the ground truth. A file that is not UTF-8 or not JSON is ignored.
    """
    caption = _decode_text(text)
    try:
        values = json.loads(json_text) if json_text else None
    except ValueError:
        values = None
    if not isinstance(values, dict):
        return Description(caption)
    captions = [values.pop(key, None) for key in ("caption", "full_caption")]
    caption, full = (value if isinstance(value, str) and value.strip() else None for value in captions)
    return Description(
        caption=_decode_text(text) or caption,
        full_caption=full,
        ground_truth=values if values.keys() & {"metadata", "questions"} else None,
    )


def _decode_text(text: bytes | None) -> str | None:
    try:
        return (text or b"").decode("utf-8").strip() or None
    except UnicodeDecodeError:
        return None


def printable(name: str) -> str:
    """Return a file name as valid UTF-8 text: other bytes are written in hexadecimal."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
