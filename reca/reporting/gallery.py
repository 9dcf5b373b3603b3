"""What is shown of the samples: chosen by a fixed rule, never by how they turned out."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from reca.reporting.inputs import Measured, Pair, Record
from reca.reporting.pictures import Picture, load_picture
from reca.reporting.words import category_words

PROMPTS_SHOWN = 3  # of each category
IMAGES_SHOWN = 4  # of each prompt, on either side
REBUILT_SHOWN = 12
QUESTIONS_SHOWN = 2  # of each kind


@dataclass(frozen=True)
class Thing:
    """Something the scorer saw in an image, and how many of it."""

    label: str
    color: str | None
    count: int


@dataclass(frozen=True)
class Shot:
    """One sample with its score and what the scorer saw."""

    picture: Picture | None
    file: str
    value: float | None
    """0 to 1; ``None``: not scored."""
    things: tuple[Thing, ...]
    note: str
    """Why it is wrong, in the scorer's words; empty if it is right."""

    @property
    def mark(self) -> str:
        """``right``, ``wrong``, ``partly`` or ``unscored``."""
        if self.value is None:
            return "unscored"
        return "right" if self.value >= 1 else "wrong" if self.value <= 0 else "partly"


@dataclass(frozen=True)
class Comparison:
    """One prompt: the same seeds drawn by the base and by the aligned model."""

    prompt: str
    base: tuple[Shot, ...]
    aligned: tuple[Shot, ...]
    hidden: int
    """Images per side that are not shown."""
    base_score: float | None
    aligned_score: float | None
    """Means over all scored images of the prompt, shown or not; ``None``: none was scored."""


@dataclass(frozen=True)
class Group:
    """The shown prompts of one category."""

    title: str
    comparisons: tuple[Comparison, ...]


@dataclass(frozen=True)
class Rebuilt:
    """An image, and what either model drew from its embeddings."""

    original: Picture | None
    base: Shot
    aligned: Shot


@dataclass(frozen=True)
class Answered:
    """One question and both answers."""

    kind: str
    question: str
    expected: str
    base: str
    aligned: str
    base_right: bool
    aligned_right: bool


def drawn(pair: Pair) -> tuple[Group, ...]:
    """The first prompts of every category, in the benchmark's own order."""
    return tuple(
        Group(category_words(name), tuple(_comparison(pair, prompt_id) for prompt_id in ids[:PROMPTS_SHOWN]))
        for name, ids in pair.categories.items()
    )


def rebuilt(pair: Pair) -> tuple[Rebuilt, ...]:
    """The first images of the benchmark, whatever became of them."""
    shown = []
    for prompt_id in list(pair.base.item)[:REBUILT_SHOWN]:
        base, aligned = (next(_shots(measured, prompt_id, 1), _NOTHING) for measured in (pair.base, pair.aligned))
        original = next((row.get("original") for row in pair.base.samples_of.get(prompt_id, [])), None)
        shown.append(Rebuilt(load_picture(pair.base.folder / original) if original else None, base, aligned))
    return tuple(shown)


def answered(pair: Pair) -> tuple[Answered, ...]:
    """The first questions of every kind."""
    return tuple(
        _answered(pair, kind, prompt_id) for kind, ids in pair.categories.items() for prompt_id in ids[:QUESTIONS_SHOWN]
    )


def _answered(pair: Pair, kind: str, prompt_id: str) -> Answered:
    base, aligned = (measured.samples_of.get(prompt_id, [{}])[0] for measured in (pair.base, pair.aligned))
    return Answered(
        category_words(kind),
        str(base.get("question", prompt_id)),
        str(base.get("expected", "")),
        str(base.get("answer", "")),
        str(aligned.get("answer", "")),
        (mean_of(pair.base.item[prompt_id]) or 0) >= 1,
        (mean_of(pair.aligned.item[prompt_id]) or 0) >= 1,
    )


def _comparison(pair: Pair, prompt_id: str) -> Comparison:
    base, aligned = (tuple(_shots(measured, prompt_id, IMAGES_SHOWN)) for measured in (pair.base, pair.aligned))
    rows = pair.base.samples_of.get(prompt_id, [])
    return Comparison(
        str(rows[0].get("prompt", prompt_id)) if rows else prompt_id,
        base,
        aligned,
        max(0, len(files_of(pair.base, prompt_id)) - IMAGES_SHOWN),
        mean_of(pair.base.item[prompt_id]),
        mean_of(pair.aligned.item[prompt_id]),
    )


_NOTHING = Shot(None, "", None, (), "")


def _shots(measured: Measured, prompt_id: str, most: int) -> Iterator[Shot]:
    item = measured.item[prompt_id]
    values, details = item.get("values", []), item.get("details", [])
    for number, file in enumerate(files_of(measured, prompt_id)[:most]):
        value = values[number] if number < len(values) else None
        detail = details[number] if number < len(details) else {}
        yield Shot(load_picture(measured.folder / file), file, value, seen(detail), note(detail))


def files_of(measured: Measured, prompt_id: str) -> list[str]:
    """The image files of a prompt, as the scorer lists them."""
    scored = measured.item[prompt_id].get("files")
    return scored or [row["file"] for row in measured.samples_of.get(prompt_id, []) if "file" in row]


def seen(detail: Any) -> tuple[Thing, ...]:
    """What the scorer saw, equal things together, in the order in which they were found."""
    found = detail.get("detections", []) if isinstance(detail, dict) else []
    counted = Counter((str(thing.get("class", "?")), thing.get("color")) for thing in found)
    return tuple(Thing(label, color, count) for (label, color), count in counted.items())


def note(detail: Any) -> str:
    """Why an image is wrong, in the scorer's words."""
    return str(detail.get("reason") or "") if isinstance(detail, dict) else ""


def mean_of(item: Record) -> float | None:
    """The score of one prompt: the mean over its images."""
    values = item.get("values")
    return sum(values) / len(values) if values else None
