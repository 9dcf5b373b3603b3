"""The contract of a benchmark, and the form of its scores.

A benchmark plans its samples (:meth:`Benchmark.plan`), lets a model make them in batches of any size
(:meth:`Benchmark.make`) and scores a finished folder (:meth:`Benchmark.score`). Making and scoring happen in
different processes, perhaps in different environments; they share only the folder of samples.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, model_validator

from reca.config import Config
from reca.config.evaluate import BENCHMARKS
from reca.evaluation.samples import Row
from reca.evaluation.statistics import Estimate
from reca.runtime.errors import UserError
from reca.runtime.files import write_text

if TYPE_CHECKING:
    from reca.models.base import UnifiedModel
    from reca.models.sampling import Sampling

ModelVariant = Literal["base", "aligned"]
"""The two models of a run."""


@dataclass(frozen=True)
class ItemScore:
    """A prompt's score in a category."""

    prompt_id: str
    category: str
    values: tuple[float | None, ...]
    """One number in 0..1 per image; ``None`` if the judge could not score it (counted as failed)."""
    files: tuple[str, ...] = ()
    """The images, in the order of ``values``."""
    details: tuple[Mapping[str, Any], ...] = ()
    """The scorer's observations, one entry per image."""


class Judge(BaseModel):
    """The scorer: its version is a digest of its weights, or a number if it has no weights."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str
    version: str
    accuracy: dict[str, float] = Field(default_factory=dict)
    """The judge's own accuracy, measured on cases with known truth."""


class Scores(BaseModel):
    """A score file: all values are fractions, higher is better."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    benchmark: str
    variant: Literal[ModelVariant, "evaluated"]
    """``evaluated``: by ``reca evaluate``, of a checkpoint or of images made elsewhere."""
    protocol: str
    """``variant: ...``; "official" is for scores that match a published protocol in every point."""
    overall: Estimate
    categories: dict[str, Estimate] = Field(min_length=1)
    expected: PositiveInt
    """Values of a complete measurement."""
    scored: NonNegativeInt
    failed: NonNegativeInt
    images_per_prompt: PositiveInt
    seed: NonNegativeInt
    settings: dict[str, Any]
    checkpoint: str
    """Digest of the weights that were measured."""
    judge: Judge
    details: dict[str, Any] = Field(default_factory=dict)
    """Facts that enter no score."""
    weights: dict[str, float] = Field(default_factory=dict)
    """Weights of the categories in the overall score; empty: equal weights."""
    unit: Literal["fraction"] = "fraction"

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        if self.scored + self.failed != self.expected:
            raise ValueError(f"{self.scored} scored + {self.failed} failed are not {self.expected} expected")
        weights = [self.weights.get(name, 0.0) if self.weights else 1.0 for name in self.categories]
        values = [category.value for category in self.categories.values()]
        mean = sum(weight * value for weight, value in zip(weights, values, strict=True)) / sum(weights)
        if abs(mean - self.overall.value) > 1e-6:
            raise ValueError(f"overall {self.overall.value} is not the mean of the categories, {mean}")
        if self.protocol == "official" and self.failed:
            raise ValueError(f"a score that lacks {self.failed} of {self.expected} values cannot be called official")
        return self

    def first_difference(self, other: "Scores", fields: Sequence[str]) -> str | None:
        """Return the first of ``fields`` that differs so that the scores cannot be compared.

        A protocol that lacks only failed values to be official is comparable with the official one.
        """
        for field in fields:
            value, other_value = getattr(self, field), getattr(other, field)
            if value != other_value and not (field == "protocol" and "official" in value and "official" in other_value):
                return field
        return None


class Benchmark(ABC):
    """One benchmark, set up from a configuration. Its class is in ``benchmarks/<name>/benchmark.py``."""

    name: ClassVar[str]
    images_per_prompt: int = 1
    seed: int = 0
    asks_model: ClassVar[bool] = False
    """Whether a model is asked about the samples, so that there are stored replies, and perhaps costs."""

    @classmethod
    @abstractmethod
    def from_config(cls, config: Config, root: Path) -> Self:
        """Set up from the ``evaluate`` section; ``root`` is the project folder."""

    @property
    @abstractmethod
    def protocol(self) -> str:
        """Return ``official``, or ``variant: `` and the differences from the published protocol."""

    @property
    @abstractmethod
    def judge(self) -> Judge:
        """Return the scorer's identity: scores by different judges are not comparable."""

    @property
    def weights(self) -> Mapping[str, float]:
        """Return the weights of the categories in the overall score; empty: equal weights."""
        return {}

    @abstractmethod
    def plan(self) -> list[Row]:
        """Return every sample to make, in order: ``prompt_id``, ``category``, ``index``, ``seed`` and more."""

    @abstractmethod
    def make(self, model: "UnifiedModel", rows: Sequence[Row], sampling: "Sampling", folder: Path) -> list[Row]:
        """Make some planned samples with their files; a sample does not depend on the others of its batch."""

    @abstractmethod
    def score(self, rows: Sequence[Row], folder: Path) -> list[ItemScore]:
        """Score a finished folder of samples."""

    @abstractmethod
    def details(self, items: Sequence[ItemScore]) -> dict[str, Any]:
        """Return facts that enter no score."""

    def existing_samples(self, folder: Path) -> list[Row]:
        """Return the plan's rows for images made elsewhere, in the benchmark's published layout.

        Raises:
            UserError: The benchmark has no such layout, or the folder does not have it.
        """
        raise UserError(f"{self.name} cannot score images made elsewhere: it has no published layout of files")

    def configure_judge(self, replies: Path, *, only_stored: bool = False) -> None:
        """Set the folder of the judge model's replies, and whether only stored replies count.

        Raises:
            UserError: Only stored replies count, but the benchmark asks no model.
        """
        if only_stored:
            raise self._asks_no_judge()

    def ask(self, rows: Sequence[Row], folder: Path) -> None:
        """Ask the judge model about some samples, so that :meth:`score` finds its replies stored.

        Raises:
            UserError: The benchmark asks no model.
        """
        raise self._asks_no_judge()

    def estimate(self, rows: Sequence[Row], folder: Path) -> str:
        """Return in words the requests that :meth:`score` would send, and their cost.

        Raises:
            UserError: The benchmark asks no model.
        """
        raise self._asks_no_judge()

    def _asks_no_judge(self) -> UserError:
        return UserError(f"{self.name} asks no judge, so there are no replies and no costs: score it as it is")


def load_benchmark(name: str, config: Config, root: Path) -> Benchmark:
    """Set up the benchmark that ``reca/evaluation/benchmarks/<name>/benchmark.py`` defines.

    Raises:
        UserError: There is no benchmark of that name.
    """
    if name not in BENCHMARKS:
        raise UserError(f"unknown benchmark {name!r}; known: {', '.join(BENCHMARKS)}")
    module = import_module(f"reca.evaluation.benchmarks.{name}.benchmark")
    benchmark_class: type[Benchmark] = next(
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Benchmark) and value.__module__ == module.__name__
    )
    return benchmark_class.from_config(config, root)


def write_items(path: Path, items: Sequence[ItemScore]) -> None:
    """Write ``<benchmark>.items.jsonl``: one line per prompt and category."""
    write_text(path, "".join(json.dumps(asdict(item), ensure_ascii=False) + "\n" for item in items))


def read_items(path: Path) -> list[ItemScore]:
    """Read the file that :func:`write_items` wrote.

    Raises:
        UserError: The file is missing or damaged.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing: score the samples first with `reca score`")
    try:
        rows = [json.loads(line) for line in path.read_text().split("\n") if line]  # texts may hold other line ends
        return [read_item(row) for row in rows]
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is damaged ({error}); delete it and run `reca score` again") from None


def read_item(row: Mapping[str, Any]) -> ItemScore:
    """Return the item of a line of ``<benchmark>.items.jsonl``."""
    lists = (tuple(row[key]) for key in ("values", "files", "details"))
    return ItemScore(row["prompt_id"], row["category"], *lists)


def values_of(items: Sequence[ItemScore]) -> dict[str, dict[str, list[float]]]:
    """Return the scored values in the form of :mod:`reca.evaluation.statistics`: category -> prompt id -> values."""
    values: dict[str, dict[str, list[float]]] = {}
    for item in items:
        scored = [value for value in item.values if value is not None]
        values.setdefault(item.category, {})[item.prompt_id] = scored
    return values


def read_scores(path: Path) -> Scores:
    """Read a score file.

    Raises:
        UserError: The file is missing or not a valid score file.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing: score the samples first with `reca score`")
    try:
        return Scores.model_validate_json(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is not a valid score file ({error}); run `reca score` again") from None


def items_by_prompt(
    rows: Sequence[Row], values: Sequence[float | None], details: Sequence[dict[str, Any]]
) -> list[ItemScore]:
    """Group one value and one detail per sample into one item per prompt."""
    prompts: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        prompts.setdefault(row["prompt_id"], []).append(index)
    return [
        ItemScore(
            prompt_id,
            rows[indices[0]]["category"],
            tuple(values[index] for index in indices),
            tuple(rows[index]["file"] for index in indices if "file" in rows[index]),
            tuple(details[index] for index in indices),
        )
        for prompt_id, indices in prompts.items()
    ]


def protocol_label(differences: Iterable[str]) -> str:
    """Return ``official``, or ``variant: `` and the differences that are not empty."""
    present = [difference for difference in differences if difference]
    return f"variant: {'; '.join(present)}" if present else "official"


def prompt_limit_difference(max_prompts: int | None) -> str:
    """Describe a limit on the number of prompts for :func:`protocol_label`."""
    return "" if max_prompts is None else f"only the first {max_prompts} prompts of each category"


def image_count_difference(images_per_prompt: int, official: int) -> str:
    """Describe another number of images than the official one for :func:`protocol_label`."""
    return "" if images_per_prompt == official else f"{images_per_prompt} images a prompt instead of {official}"
