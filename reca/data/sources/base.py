"""What every source of images yields: items, and things that cannot be one, told apart by type."""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".gif", ".bmp", ".avif"})
TEXT_SUFFIXES = frozenset({".txt", ".json"})


@dataclass(frozen=True, slots=True)
class Description:
    """What is said about an image beside its pixels."""

    caption: str | None = None
    full_caption: str | None = None
    ground_truth: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Item:
    """Bytes that should be an image; ``source`` names them to people (a relative path, a URL, a row)."""

    source: str
    data: bytes
    description: Description = Description()


@dataclass(frozen=True, slots=True)
class Rejected:
    """Something that is no image, known before its bytes were decoded; a row of ``quarantine.jsonl``."""

    source: str
    reason: str
    detail: str


class Source(ABC):
    """Images in a fixed order, read one after the other; iterate once.

    ``done`` of ``total`` units have been read; both are only for the progress display.
    """

    unit: ClassVar[str] = "images"
    endless: ClassVar[bool] = False
    """Too large to be read to the end when fewer images are wanted: the first ones that are good are taken."""
    total: int = 0
    done: int = 0

    @abstractmethod
    def __iter__(self) -> Iterator[Item | Rejected]:
        """Yield every image, or what stands in its place."""


def describe(text: bytes | None, json_text: bytes | None) -> Description:
    """Read the files that lie beside an image: ``key.txt`` is its caption, ``key.json`` holds what else is known.

    Of the JSON object, ``caption`` and ``full_caption`` are taken as such, and the whole of it as ground truth where
    it has GenEval ``metadata`` or ``questions``. What is not UTF-8 or not JSON is as good as absent.
    """
    caption = _decoded(text)
    try:
        values = json.loads(json_text) if json_text else None
    except ValueError:
        values = None
    if not isinstance(values, dict):
        return Description(caption)
    said = {key: values.pop(key, None) for key in ("caption", "full_caption")}
    caption, full = (value if isinstance(value, str) and value.strip() else None for value in said.values())
    return Description(
        caption=_decoded(text) or caption,
        full_caption=full,
        ground_truth=values if values.keys() & {"metadata", "questions"} else None,
    )


def _decoded(text: bytes | None) -> str | None:
    try:
        return (text or b"").decode("utf-8").strip() or None
    except UnicodeDecodeError:
        return None


def printable(name: str) -> str:
    """A file name as text that any file can hold: bytes that are not UTF-8 are written in hexadecimal."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
