"""What is shown of the samples: chosen by a fixed rule, never by how they turned out."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from reca.evaluation.benchmark import ItemScore
from reca.reporting.inputs import Measured, Pair
from reca.reporting.text import category_words
from reca.reporting.thumbnails import Picture, load_picture

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
    """0 to 1; ``None``: it could not be scored."""
    things: tuple[Thing, ...] | None
    """``None``: nobody looked for things in it."""
    note: str = ""
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
        Group(category_words(name), tuple(_comparison(pair, name, prompt_id) for prompt_id in ids[:PROMPTS_SHOWN]))
        for name, ids in pair.categories.items()
    )


def rebuilt(pair: Pair) -> tuple[Rebuilt, ...]:
    """The first images of the benchmark, whatever became of them."""
    shown = []
    for prompt_id, rows in list(pair.base.samples_of.items())[:REBUILT_SHOWN]:
        original = load_picture(pair.base.folder / str(rows[0]["original"]))
        shown.append(Rebuilt(original, *(_rebuilt_shot(measured, prompt_id) for measured in pair.sides)))
    return tuple(shown)


def answered(pair: Pair) -> tuple[Answered, ...]:
    """The first questions of every kind."""
    return tuple(
        _answered(pair, kind, prompt_id) for kind, ids in pair.categories.items() for prompt_id in ids[:QUESTIONS_SHOWN]
    )


def _answered(pair: Pair, kind: str, prompt_id: str) -> Answered:
    base, aligned = (measured.samples_of.get(prompt_id, [{}])[0] for measured in pair.sides)
    return Answered(
        category_words(kind),
        str(base.get("question", prompt_id)),
        str(base.get("expected", "")),
        str(base.get("answer", "")),
        str(aligned.get("answer", "")),
        (mean_of(pair.base.item[kind, prompt_id]) or 0) >= 1,
        (mean_of(pair.aligned.item[kind, prompt_id]) or 0) >= 1,
    )


def _comparison(pair: Pair, category: str, prompt_id: str) -> Comparison:
    base, aligned = (measured.item[category, prompt_id] for measured in pair.sides)
    rows = pair.base.samples_of.get(prompt_id, [{}])
    return Comparison(
        str(rows[0].get("prompt", prompt_id)),
        tuple(_shots(pair.base, base)),
        tuple(_shots(pair.aligned, aligned)),
        max(0, len(base.files) - IMAGES_SHOWN),
        mean_of(base),
        mean_of(aligned),
    )


def _shots(measured: Measured, item: ItemScore) -> Iterator[Shot]:
    for number, file in enumerate(item.files[:IMAGES_SHOWN]):
        detail = item.details[number] if number < len(item.details) else {}
        yield Shot(load_picture(measured.folder / file), file, item.values[number], seen(detail), note(detail))


def _rebuilt_shot(measured: Measured, prompt_id: str) -> Shot:
    """A reconstruction: right or wrong as a whole scene where the truth is known, else how similar it is."""
    items = {item.category: item for item in measured.items if item.prompt_id == prompt_id}
    whole = items.get("exact_scene") or items.get("similarity")
    detail: dict[str, Any] = {}
    for item in items.values():
        detail |= item.details[0] if item.details else {}
    file = str(measured.samples_of[prompt_id][0]["file"])
    return Shot(load_picture(measured.folder / file), file, mean_of(whole) if whole else None, seen(detail))


def seen(detail: Mapping[str, Any]) -> tuple[Thing, ...] | None:
    """What the scorer saw, equal things together, in the order in which they were found."""
    if "seen" not in detail:
        return None
    counted = Counter((str(thing["name"]), thing.get("color")) for thing in detail["seen"])
    return tuple(Thing(label, color, count) for (label, color), count in counted.items())


def note(detail: Mapping[str, Any]) -> str:
    """Why an image is wrong, in the scorer's words."""
    return "; ".join(map(str, detail.get("reasons", ())))


def mean_of(item: ItemScore) -> float | None:
    """The score of one prompt: the mean over its scored images."""
    values = [value for value in item.values if value is not None]
    return sum(values) / len(values) if values else None
