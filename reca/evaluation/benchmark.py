"""What a benchmark is, what judges it may ask, and the form of its scores.

A benchmark plans its samples (:meth:`Benchmark.plan`), lets a model make them in batches of any size
(:meth:`Benchmark.make`) and scores a finished folder (:meth:`Benchmark.score`). Making and scoring happen in
different processes, perhaps in different environments; the folder of samples is all they share.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    model_validator,
)

from reca.config import Config
from reca.config.base import Fraction
from reca.evaluation.samples import Pixels, Row
from reca.runtime.errors import UserError
from reca.runtime.files import write_text

if TYPE_CHECKING:
    from reca.evaluation.judges.scene_detector import Detection
    from reca.models.base import Sampling, UnifiedModel

BENCHMARKS = {
    "scenes": "reca.evaluation.benchmarks.scenes.benchmark:Scenes",
    "understanding": "reca.evaluation.benchmarks.understanding.benchmark:Understanding",
    "fidelity": "reca.evaluation.benchmarks.fidelity.benchmark:Fidelity",
    "geneval": "reca.evaluation.benchmarks.geneval.benchmark:Geneval",
    "dpgbench": "reca.evaluation.benchmarks.dpgbench.benchmark:Dpgbench",
    "wise": "reca.evaluation.benchmarks.wise.benchmark:Wise",
    "imgedit": "reca.evaluation.benchmarks.imgedit.benchmark:Imgedit",
    "gedit": "reca.evaluation.benchmarks.gedit.benchmark:Gedit",
    "mme": "reca.evaluation.benchmarks.mme.benchmark:Mme",
    "pope": "reca.evaluation.benchmarks.pope.benchmark:Pope",
    "mmmu": "reca.evaluation.benchmarks.mmmu.benchmark:Mmmu",
    "scene_editing": "reca.evaluation.benchmarks.scene_editing.benchmark:SceneEditing",
}
"""Where each benchmark lives; a new one is one more line."""

ModelVariant = Literal["base", "aligned"]
"""The two models of a run."""


@dataclass(frozen=True)
class ItemScore:
    """What one prompt scored in one category."""

    prompt_id: str
    category: str
    values: tuple[float | None, ...]
    """One number in 0..1 per image; ``None`` where the judge could not score it (counted as failed)."""
    files: tuple[str, ...] = ()
    """The images, in the order of ``values``."""
    details: tuple[Mapping[str, Any], ...] = ()
    """What the scorer saw in each image."""


class _Closed(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Estimate(_Closed):
    """A score and its confidence interval."""

    value: Fraction
    low: Fraction
    high: Fraction

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"the interval [{self.low}, {self.high}] is upside down")
        return self


class CategoryEstimate(Estimate):
    """A category's score."""

    n: PositiveInt
    """Prompts that it rests on."""


class Judge(_Closed):
    """Who scored: its version is a digest of its weights, or a number where it has none."""

    name: str
    version: str
    accuracy: dict[str, float] = Field(default_factory=dict)
    """How often the judge itself is right, measured on cases whose truth is known."""


class Scores(_Closed):
    """A score file: all values are fractions, higher is better."""

    benchmark: str
    variant: Literal[ModelVariant, "evaluated"]
    """``evaluated``: by ``reca evaluate``, of a checkpoint or of images made elsewhere."""
    protocol: str
    """``variant: ...``; the word "official" is for runs that match a published protocol in every point."""
    overall: Estimate
    categories: dict[str, CategoryEstimate] = Field(min_length=1)
    expected: PositiveInt
    """Values that the benchmark asks for."""
    scored: NonNegativeInt
    failed: NonNegativeInt
    images_per_prompt: PositiveInt
    seed: NonNegativeInt
    settings: dict[str, Any]
    checkpoint: str
    """Digest of the weights that were measured."""
    judge: Judge
    details: dict[str, Any] = Field(default_factory=dict)
    """Further facts that enter no score."""
    weights: dict[str, float] = Field(default_factory=dict)
    """Of the categories in the overall score; empty: all weigh the same."""
    unit: Literal["fraction"] = "fraction"

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        if self.scored + self.failed != self.expected:
            raise ValueError(f"{self.scored} scored + {self.failed} failed are not {self.expected} expected")
        weights = [self.weights.get(name, 0.0) if self.weights else 1.0 for name in self.categories]
        total = sum(weight * one.value for weight, one in zip(weights, self.categories.values(), strict=True))
        mean = total / sum(weights)
        if abs(mean - self.overall.value) > 1e-6:
            raise ValueError(f"overall {self.overall.value} is not the mean of the categories, {mean}")
        if self.protocol == "official" and self.failed:
            raise ValueError(f"a score that lacks {self.failed} of {self.expected} values cannot be called official")
        return self

    def first_difference(self, other: "Scores", facts: Sequence[str]) -> str | None:
        """The first of ``facts`` in which two scores differ so that they cannot be compared.

        One that would be official if all its values were there is compared with an official one.
        """
        for fact in facts:
            mine, theirs = getattr(self, fact), getattr(other, fact)
            if mine != theirs and not (fact == "protocol" and "official" in mine and "official" in theirs):
                return fact
        return None


class Detector(Protocol):
    """Finds objects in images."""

    def detect(self, images: Any) -> "list[list[Detection]]":
        """Objects of each image (B, 3, H, W) in [-1, 1], best first."""


class ColorClassifier(Protocol):
    """Names the colour of an object where the detector does not."""

    def classify(self, image: Pixels, objects: "Sequence[Detection]", name: str) -> list[str]:
        """One colour per object of class ``name``."""


class Benchmark(Protocol):
    """One benchmark, set up from a configuration."""

    name: ClassVar[str]
    protocol: str
    images_per_prompt: int
    seed: int
    judge: Judge

    @classmethod
    def from_config(cls, config: Config, root: Path) -> Self:
        """Set up from the ``evaluate`` section; ``root`` is the project folder."""

    def plan(self) -> list[Row]:
        """Every sample that must be made, in order: ``prompt_id``, ``category``, ``index``, ``seed`` and more."""

    def make(self, model: "UnifiedModel", rows: Sequence[Row], sampling: "Sampling", folder: Path) -> list[Row]:
        """Make some planned samples, files and all; what comes out does not depend on which others are made."""

    def score(self, rows: Sequence[Row], folder: Path) -> list[ItemScore]:
        """Score a finished folder of samples."""

    def details(self, items: Sequence[ItemScore]) -> dict[str, Any]:
        """Facts worth knowing that enter no score."""


def load_benchmark(name: str, config: Config, root: Path) -> Benchmark:
    """Set up the benchmark ``name``.

    Raises:
        UserError: There is none of that name.
    """
    if name not in BENCHMARKS:
        raise UserError(f"unknown benchmark {name!r}; known: {', '.join(BENCHMARKS)}")
    module, kind = BENCHMARKS[name].split(":")
    benchmark: Benchmark = getattr(import_module(module), kind).from_config(config, root)
    return benchmark


def write_items(path: Path, items: Sequence[ItemScore]) -> None:
    """Write ``<benchmark>.items.jsonl`` whole: one line per prompt and category."""
    write_text(path, "".join(json.dumps(asdict(item), ensure_ascii=False) + "\n" for item in items))


def read_items(path: Path) -> list[ItemScore]:
    """Read what :func:`write_items` wrote.

    Raises:
        UserError: The file is missing or damaged.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing: score the samples first with `reca score`")
    try:
        rows = [json.loads(line) for line in path.read_text().split("\n") if line]  # texts may hold other line ends
        return [_item(row) for row in rows]
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is damaged ({error}); delete it and run `reca score` again") from None


def _item(row: Mapping[str, Any]) -> ItemScore:
    lists = (tuple(row[key]) for key in ("values", "files", "details"))
    return ItemScore(row["prompt_id"], row["category"], *lists)


def values_of(items: Sequence[ItemScore]) -> dict[str, dict[str, list[float]]]:
    """The scored values as :mod:`reca.evaluation.statistics` wants them: category -> prompt id -> values."""
    values: dict[str, dict[str, list[float]]] = {}
    for item in items:
        kept = [value for value in item.values if value is not None]
        values.setdefault(item.category, {})[item.prompt_id] = kept
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
