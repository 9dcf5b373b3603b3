"""Settings of the published benchmarks, ``null`` where they do not run, and of the models that judge them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from reca.config.base import Section

BENCHMARKS = tuple(
    sorted(path.parent.name for path in Path(__file__).parents[1].glob("evaluation/benchmarks/*/benchmark.py"))
)
"""Names of all benchmarks: the folders of ``reca/evaluation/benchmarks`` with a ``benchmark.py``."""


def _check_name(name: str) -> str:
    if name not in BENCHMARKS:
        raise ValueError(f"unknown benchmark; known: {', '.join(BENCHMARKS)}")
    return name


BenchmarkName = Annotated[str, AfterValidator(_check_name)]

HubId = Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+@[\w./-]+$")]
"""``REPOSITORY@REVISION`` on the hub."""

JUDGING = ("judge", "scoring", "detector", "clip", "encoders", "official_quirks")
"""Settings that only scoring reads: they do not make samples stale."""


class _Published(Section):
    """Settings of every published benchmark."""

    max_prompts: PositiveInt | None = None
    """Number of prompts per category in a quick look; ``None``: all, as published numbers need."""


class _GeneratedImages(_Published):
    """A benchmark whose samples are generated images."""

    seed: NonNegativeInt = 0
    """Base seed; an image's seed also depends on its prompt and number."""


class JudgeSettings(Section):
    """A model that answers questions about images; every key changes its answers."""

    model: str
    """Name of the model at the endpoint; with ``folder`` a name for the reports only."""
    url: str = "https://api.openai.com/v1"
    """Base URL of an endpoint with OpenAI's chat completions."""
    folder: str | None = None
    """Local folder with a vision-language model of transformers, which then replaces the endpoint."""
    max_tokens: PositiveInt = 1024
    temperature: NonNegativeFloat | None = 0.0
    """``None``: the endpoint's default."""


class JudgedBenchmarkSettings(_GeneratedImages):
    """A benchmark whose samples are judged by a vision-language model."""

    judge: JudgeSettings

    @model_validator(mode="before")
    @classmethod
    def _complete_judge(cls, values: object) -> object:
        """Fill in the default judge's keys, so that an override can name another model or URL alone."""
        if not isinstance(values, dict) or not isinstance(values.get("judge"), dict):
            return values
        return {**values, "judge": {**cls.model_fields["judge"].default.model_dump(), **values["judge"]}}


class JudgeLimits(Section):
    """Limits on the requests to an endpoint and their cost; no key changes an answer."""

    api_key_variable: str
    """Environment variable that holds the API key; the key itself is never stored."""
    concurrency: PositiveInt
    requests_per_minute: PositiveFloat
    timeout_seconds: PositiveFloat
    max_attempts: PositiveInt
    input_price: NonNegativeFloat | None
    """US dollars per million tokens; required for an endpoint on another machine, because the ceiling depends on it."""
    output_price: NonNegativeFloat | None
    cost_ceiling: NonNegativeFloat
    """US dollars that one scoring may spend; at the ceiling it stops, and a rerun with a higher one continues."""


class GenevalSettings(_GeneratedImages):
    """GenEval: 553 prompts, judged by Mask2Former and CLIP."""

    images_per_prompt: PositiveInt = 12
    """12 as in BAGEL and RecA; the official protocol has 4."""
    detector: HubId = "facebook/mask2former-swin-small-coco-instance@main"
    """Stored in ``data/judges/`` under its last name; ``mmdet/NAME@SOURCE`` is one converted from mmdet's file."""
    clip: HubId = "openai/clip-vit-large-patch14@32bd64288804d66eefd0ccbe215aa642df71cc41"


class DpgbenchSettings(JudgedBenchmarkSettings):
    """DPG-Bench: 1,065 long prompts, each with yes/no questions."""

    images_per_prompt: PositiveInt = Field(default=4, le=4)
    judge: JudgeSettings = JudgeSettings(model="gpt-4o-2024-08-06", max_tokens=16)
    official_quirks: bool = False
    """Reproduce the mistakes of the official script (docs/benchmarks.md)."""


class WiseSettings(JudgedBenchmarkSettings):
    """WISE: 1,000 prompts that need knowledge of the world, one image each."""

    version: Literal["legacy", "verified"] = "legacy"
    """``legacy``: of the paper and RecA; ``verified``: of 2026. Their numbers are not comparable."""
    judge: JudgeSettings = JudgeSettings(model="gpt-4o-2024-05-13", max_tokens=2000)
    scoring: Literal["strict", "official"] = "strict"
    """Rules that read the replies."""


class ImgeditSettings(JudgedBenchmarkSettings):
    """ImgEdit-Bench, basic suite: 737 edits, three scores of 1-5 each."""

    judge: JudgeSettings = JudgeSettings(model="gpt-4.1-2025-04-14", temperature=None)
    scoring: Literal["strict", "official"] = "strict"


class GeditSettings(JudgedBenchmarkSettings):
    """GEdit-Bench: 606 edits in two languages, judged as VIEScore does."""

    language: Literal["en", "cn"] = "en"
    judge: JudgeSettings = JudgeSettings(model="gpt-4.1-2025-04-14", max_tokens=1400)


class QuestionSetSettings(_Published):
    """MME, POPE or MMMU: published questions about images; a prompt is an image with its questions (MMMU: a question).

    Answers are greedy, so there is no seed.
    """

    scoring: Literal["official", "lmms-eval"] = "official"
    """Rules that read the replies; another choice needs no new answers."""


class SceneEditingSettings(Section):
    """Edits of rendered scenes: not published, but not in the default either, because few families edit."""

    edits_per_category: PositiveInt = 40
    seed: NonNegativeInt = 4


class PublishedSettings(Section):
    """Settings of the benchmarks that are not in the default, present where they are measured."""

    geneval: GenevalSettings | None = None
    dpgbench: DpgbenchSettings | None = None
    wise: WiseSettings | None = None
    imgedit: ImgeditSettings | None = None
    gedit: GeditSettings | None = None
    mme: QuestionSetSettings | None = None
    pope: QuestionSetSettings | None = None
    mmmu: QuestionSetSettings | None = None
    scene_editing: SceneEditingSettings | None = None

    @model_validator(mode="before")
    @classmethod
    def _add_defaults(cls, values: object) -> object:
        """Give every benchmark that is measured a section."""
        if not isinstance(values, dict):
            return values
        defaults: dict[str, object] = {name: {} for name in values.get("benchmarks") or () if name in PUBLISHED}
        return {**defaults, **{name: value for name, value in values.items() if value is not None}}


PUBLISHED = tuple(PublishedSettings.model_fields)


def sampling_arguments(generate: Mapping[str, Any], benchmark: str = "") -> dict[str, Any]:
    """Return the arguments of ``Sampling`` in a benchmark, from the ``generate`` section as plain values."""
    own = generate.get("benchmarks", {}).get(benchmark, {})
    merged = {**generate, **{name: value for name, value in own.items() if value is not None}}
    return {name: value for name, value in merged.items() if name != "benchmarks" and value is not None}


def sampling_settings(section: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the settings of a benchmark that its samples depend on."""
    return {name: value for name, value in (section or {}).items() if name not in JUDGING}
