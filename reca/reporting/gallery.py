"""The samples on the page: selected by a fixed rule, never by how they turned out."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from reca.evaluation.benchmark import ItemScore
from reca.reporting.inputs import BenchmarkResult, ResultPair
from reca.reporting.text import category_label
from reca.reporting.thumbnails import Thumbnail, load_thumbnail

PROMPTS_PER_CATEGORY = 3
IMAGES_PER_PROMPT = 4  # of either model
RECONSTRUCTIONS = 12
QUESTIONS_PER_CATEGORY = 2


@dataclass(frozen=True)
class DetectedObject:
    """A kind of object that the scorer detected in an image."""

    label: str
    color: str | None
    count: int


@dataclass(frozen=True)
class GallerySample:
    """One sample with its score and the objects detected in it."""

    image: Thumbnail | None
    file: str
    value: float | None
    """0 to 1; ``None``: it could not be scored."""
    objects: tuple[DetectedObject, ...] | None
    """``None``: this benchmark detects no objects."""
    reasons: str = ""
    """Why it is wrong, in the scorer's words; empty if it is right."""

    @property
    def mark(self) -> str:
        """``right``, ``wrong``, ``partly`` or ``unscored``."""
        if self.value is None:
            return "unscored"
        return "right" if self.value >= 1 else "wrong" if self.value <= 0 else "partly"


@dataclass(frozen=True)
class PromptSamples:
    """One prompt: the same seeds drawn by the base and by the aligned model."""

    prompt: str
    base: tuple[GallerySample, ...]
    aligned: tuple[GallerySample, ...]
    hidden: int
    """Images per model that are left out."""
    base_score: float | None
    aligned_score: float | None
    """Means over all scored images of the prompt; ``None``: no image was scored."""


@dataclass(frozen=True)
class CategorySamples:
    """Samples of the first prompts in a category."""

    title: str
    prompts: tuple[PromptSamples, ...]


@dataclass(frozen=True)
class Reconstruction:
    """An image, and its reconstruction by either model from its embeddings."""

    original: Thumbnail | None
    base: GallerySample
    aligned: GallerySample


@dataclass(frozen=True)
class AnswerPair:
    """One question and both answers."""

    category: str
    question: str
    expected: str
    base: str
    aligned: str
    base_right: bool
    aligned_right: bool


def select_samples(pair: ResultPair) -> tuple[CategorySamples, ...]:
    """Return the first prompts of every category, in the benchmark's own order."""
    return tuple(
        CategorySamples(
            category_label(name), tuple(_prompt_samples(pair, name, prompt) for prompt in ids[:PROMPTS_PER_CATEGORY])
        )
        for name, ids in pair.categories.items()
    )


def select_reconstructions(pair: ResultPair) -> tuple[Reconstruction, ...]:
    """Return the first images of the benchmark, however they turned out."""
    reconstructions = []
    for prompt_id, rows in list(pair.base.samples_by_prompt.items())[:RECONSTRUCTIONS]:
        original = load_thumbnail(pair.base.folder / str(rows[0]["original"]))
        samples = (_reconstructed_sample(result, prompt_id) for result in pair.results)
        reconstructions.append(Reconstruction(original, *samples))
    return tuple(reconstructions)


def select_answers(pair: ResultPair) -> tuple[AnswerPair, ...]:
    """Return the first questions of every category."""
    return tuple(
        _answer_pair(pair, category, prompt_id)
        for category, ids in pair.categories.items()
        for prompt_id in ids[:QUESTIONS_PER_CATEGORY]
    )


def detected_objects(detail: Mapping[str, Any]) -> tuple[DetectedObject, ...] | None:
    """Return the objects that the scorer detected, equal ones together, in the order of detection."""
    if "seen" not in detail:
        return None
    counts = Counter((str(detection["name"]), detection.get("color")) for detection in detail["seen"])
    return tuple(DetectedObject(label, color, count) for (label, color), count in counts.items())


def mean_value(item: ItemScore) -> float | None:
    """Return the score of a prompt: the mean over its scored images."""
    values = [value for value in item.values if value is not None]
    return sum(values) / len(values) if values else None


def _answer_pair(pair: ResultPair, category: str, prompt_id: str) -> AnswerPair:
    base, aligned = (result.samples_by_prompt.get(prompt_id, [{}])[0] for result in pair.results)
    return AnswerPair(
        category_label(category),
        str(base.get("question", prompt_id)),
        str(base.get("expected", "")),
        str(base.get("answer", "")),
        str(aligned.get("answer", "")),
        (mean_value(pair.base.items_by_key[category, prompt_id]) or 0) >= 1,
        (mean_value(pair.aligned.items_by_key[category, prompt_id]) or 0) >= 1,
    )


def _prompt_samples(pair: ResultPair, category: str, prompt_id: str) -> PromptSamples:
    base, aligned = (result.items_by_key[category, prompt_id] for result in pair.results)
    rows = pair.base.samples_by_prompt.get(prompt_id, [{}])
    return PromptSamples(
        str(rows[0].get("prompt", prompt_id)),
        tuple(_samples(pair.base, base)),
        tuple(_samples(pair.aligned, aligned)),
        max(0, len(base.files) - IMAGES_PER_PROMPT),
        mean_value(base),
        mean_value(aligned),
    )


def _samples(result: BenchmarkResult, item: ItemScore) -> Iterator[GallerySample]:
    for number, file in enumerate(item.files[:IMAGES_PER_PROMPT]):
        detail = item.details[number] if number < len(item.details) else {}
        reasons = "; ".join(map(str, detail.get("reasons", ())))
        image = load_thumbnail(result.folder / file)
        yield GallerySample(image, file, item.values[number], detected_objects(detail), reasons)


def _reconstructed_sample(result: BenchmarkResult, prompt_id: str) -> GallerySample:
    """Return a reconstruction, scored as a whole scene if the true scene is known, else by its similarity."""
    items = {item.category: item for item in result.items if item.prompt_id == prompt_id}
    item = items.get("exact_scene") or items.get("similarity")
    detail: dict[str, Any] = {}
    for category_item in items.values():
        detail |= category_item.details[0] if category_item.details else {}
    file = str(result.samples_by_prompt[prompt_id][0]["file"])
    value = mean_value(item) if item else None
    return GallerySample(load_thumbnail(result.folder / file), file, value, detected_objects(detail))
