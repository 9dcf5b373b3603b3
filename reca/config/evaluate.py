"""Settings of the benchmarks that are in no default, ``null`` where they do not run, and of judges that are asked."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from reca.config.base import Section

HubId = Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+@[\w./-]+$")]
"""``REPOSITORY@REVISION`` of the hub."""

JUDGING = ("judge", "scoring", "detector", "clip", "encoders", "official_quirks")
"""Settings that only scoring reads: samples need not be made anew when they change."""


class _Published(Section):
    """What all published benchmarks have in common."""

    max_prompts: PositiveInt | None = None
    """Only the first prompts of every category, for a quick look; ``None``: all, as anything comparable needs."""


class _Drawn(_Published):
    """A benchmark whose samples are images that the model draws."""

    seed: NonNegativeInt = 0
    """What the images' seeds are made of, together with prompt and number."""


class JudgeSettings(Section):
    """A model that is asked about images; all of this decides what it answers."""

    model: str
    """The model's name at the endpoint; with ``folder`` just a name for the reports."""
    url: str = "https://api.openai.com/v1"
    """Base address of any endpoint that speaks OpenAI's chat completions."""
    folder: str | None = None
    """A vision-language model of transformers in a local folder; it is then asked here and ``url`` means nothing."""
    max_tokens: PositiveInt = 1024
    temperature: NonNegativeFloat | None = 0.0
    """``None`` leaves it to the endpoint."""


class JudgedBenchmarkSettings(_Drawn):
    """A benchmark whose samples are judged by a model that is asked about them."""

    judge: JudgeSettings

    @model_validator(mode="before")
    @classmethod
    def _judge_is_completed(cls, values: object) -> object:
        """What is not said about the judge is as in the default, so that one may name another model or address."""
        if not isinstance(values, dict) or not isinstance(values.get("judge"), dict):
            return values
        return {**values, "judge": {**cls.model_fields["judge"].default.model_dump(), **values["judge"]}}


class JudgeLimits(Section):
    """How a judge at an endpoint is treated, and for how much money; nothing here changes an answer."""

    api_key_variable: str
    """Environment variable with the key; the key itself is never stored."""
    concurrency: PositiveInt
    requests_per_minute: PositiveFloat
    timeout_seconds: PositiveFloat
    max_attempts: PositiveInt
    input_price: NonNegativeFloat | None
    """US dollars per million tokens. Needed unless the endpoint runs on this machine, since the ceiling rests on it."""
    output_price: NonNegativeFloat | None
    cost_ceiling: NonNegativeFloat
    """US dollars that one scoring may spend; at the ceiling it stops, and goes on when it is raised."""


class GenevalSettings(_Drawn):
    """GenEval: 553 prompts, judged by Mask2Former and CLIP."""

    images_per_prompt: PositiveInt = 12
    """12 as BAGEL and RecA; officially 4."""
    detector: HubId = "facebook/mask2former-swin-small-coco-instance@main"
    """Lies in ``data/judges/`` under its last name; ``mmdet/NAME@SOURCE`` names one converted from mmdet's file."""
    clip: HubId = "openai/clip-vit-large-patch14@32bd64288804d66eefd0ccbe215aa642df71cc41"


class DpgbenchSettings(JudgedBenchmarkSettings):
    """DPG-Bench: 1,065 long prompts, each with yes/no questions."""

    images_per_prompt: PositiveInt = Field(default=4, le=4)
    judge: JudgeSettings = JudgeSettings(model="gpt-4o-2024-08-06", max_tokens=16)
    official_quirks: bool = False
    """Reproduce what is wrong in the official script (docs/benchmarks.md)."""


class WiseSettings(JudgedBenchmarkSettings):
    """WISE: 1,000 prompts that need knowledge of the world, one image each."""

    version: Literal["legacy", "verified"] = "legacy"
    """``legacy``: the paper's, and RecA's; ``verified``: that of 2026. Their numbers are not comparable."""
    judge: JudgeSettings = JudgeSettings(model="gpt-4o-2024-05-13", max_tokens=2000)
    scoring: Literal["strict", "official"] = "strict"
    """How replies are read."""


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
    """Whose reading of the replies; another one needs no new answers."""


class SceneEditingSettings(Section):
    """Edits of rendered scenes: published nowhere, but in no default either, since few families edit."""

    edits_per_category: PositiveInt = 40
    seed: NonNegativeInt = 4


class PublishedSettings(Section):
    """The sections of the published benchmarks, and of what few families can do: there where they are measured."""

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
    def _defaults_of_the_measured(cls, values: object) -> object:
        """A benchmark that is measured has a section, with its defaults where none is given."""
        if not isinstance(values, dict):
            return values
        missing: dict[str, object] = {name: {} for name in values.get("benchmarks") or () if name in PUBLISHED}
        return {**missing, **{name: value for name, value in values.items() if value is not None}}


PUBLISHED = tuple(PublishedSettings.model_fields)


def uses_local_judge(evaluate: Mapping[str, Any], name: str) -> bool:
    """Whether a network judges this benchmark on this machine: several processes, a device each, can share that.

    Not the scene detector: it takes seconds.
    """
    section = evaluate.get(name) or {}
    return bool(section.get("detector") or section.get("encoders") or (section.get("judge") or {}).get("folder"))


def sampling_settings(section: Mapping[str, Any] | None) -> dict[str, Any]:
    """The settings of a benchmark that decide which samples are made."""
    return {name: value for name, value in (section or {}).items() if name not in JUDGING}
