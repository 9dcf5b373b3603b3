"""The one configuration: composed by Hydra from ``conf/``, closed by pydantic, kept in ``params.yaml``.

Sections are named after the stages that read them. What changes a result stands in ``model data extract
train generate evaluate register seed`` and is tracked by DVC; what changes only speed or place stands in
``hardware tracking paths`` and never appears in ``dvc.yaml``.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

ROOT = Path(__file__).resolve().parent.parent
CONF = ROOT / "conf"
HEADER = "# Composed from conf/ by `reca compose`. Do not edit: change conf/ or pass overrides, then compose again.\n"
Fraction = Annotated[float, Field(ge=0, le=1)]
BenchmarkName = Literal["scenes", "understanding", "fidelity"]


class ConfigError(Exception):
    """The configuration is wrong; the message names the key, the value and what is allowed."""


class Section(BaseModel):
    """A closed, frozen part of the configuration: an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelSection(Section):
    """Which model is aligned, and which of its parts move."""

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    """The preset's name; the registered model is ``reca-<name>``."""
    family: Literal["janus"]
    checkpoint: str
    """Folder in the official layout (relative to the project), or a hub id."""
    revision: str | None = None
    """Commit of the hub repository; required for a hub id, so that a run can be repeated."""
    prompt_dropout: Fraction
    """How often a training sample loses its condition, for classifier-free guidance."""
    train_vision: bool = False
    """Janus: train the understanding encoder too. Off: its embeddings may be cached."""


class ScenesData(Section):
    """Scenes rendered from a seed; ``path`` is the recipe, so that DVC has a file to watch."""

    source: Literal["scenes"]
    path: str
    num_images: PositiveInt
    image_size: PositiveInt
    """Side in pixels, of the benchmarks' rendered scenes too."""
    held_out: Literal["conf/data/scenes.yaml"] = "conf/data/scenes.yaml"
    """What benchmarks of held-out images depend on in ``dvc.yaml``: scenes are rendered anew, whatever was ingested."""
    held_out_fraction: Fraction
    max_bad_fraction: Fraction


class _FoundImages(Section):
    """What every source of images as they come has in common."""

    path: str
    num_images: PositiveInt | None = None
    """At most this many images, the first in order of content hash; ``None``: all."""
    image_size: None = None
    """Images keep their own sizes."""
    held_out: Literal["outputs/dataset"] = "outputs/dataset"
    held_out_fraction: Fraction
    max_bad_fraction: Fraction
    """More unreadable files than this share of all stop the stage."""
    max_pixels: PositiveInt
    """Larger images are refused before they are decoded (decompression bombs)."""
    min_side: PositiveInt
    """Images with a shorter side, in pixels, go to the quarantine."""


class FolderData(_FoundImages):
    """A folder of photographs as it comes; put under DVC when a run is prepared."""

    source: Literal["folder"]


class WebDatasetData(_FoundImages):
    """Tar shards in webdataset layout: a local pattern, or URLs such as ``https://host/{0000..0009}.tar``."""

    source: Literal["webdataset"]
    urls: str


class HubData(_FoundImages):
    """A data set of the hub, or a local folder that ``datasets.load_dataset`` reads."""

    source: Literal["hub"]
    dataset: str
    revision: str | None = None
    split: str = "train"
    image_column: str = "image"
    caption_column: str | None = None
    """The column whose text is an image's caption; ``None``: images have none."""


DataSection = Annotated[ScenesData | FolderData | WebDatasetData | HubData, Field(discriminator="source")]


class ExtractSection(Section):
    """How embeddings and targets are stored."""

    dtype: Literal["bfloat16", "float32"]
    images_per_shard: PositiveInt


class MixtureSection(Section):
    """Weights λ of the three losses (paper, equation 3).

    The two image losses split ``train.global_batch_size`` images in proportion to their weights, so 1 : 1 (RecA)
    and 0 : 1 (its control) see equally many images. A weight of 0 leaves that loss out.
    """

    reconstruction: NonNegativeFloat
    """Rebuild the image from its own understanding embeddings: L_RecA."""
    text_to_image: NonNegativeFloat
    """Draw the image of a caption: L_t2i; every training image needs one."""
    understanding: NonNegativeFloat
    """Answer questions about images, L_i2t: so many dialogues per image of the other two, on top of them."""

    @model_validator(mode="after")
    def _something_to_train(self) -> Self:
        if self.reconstruction + self.text_to_image + self.understanding == 0:
            raise ValueError("all three losses have weight 0: nothing would be trained")
        return self


class TrainSection(Section):
    """The recipe; everything here changes the weights that come out."""

    max_steps: PositiveInt
    """Optimizer steps."""
    global_batch_size: PositiveInt
    """Images per optimizer step, of both image losses together, over all devices and accumulation."""
    learning_rate: PositiveFloat = Field(le=1)
    schedule: Literal["constant", "cosine"]
    warmup_steps: NonNegativeInt
    betas: tuple[Fraction, Fraction]
    weight_decay: NonNegativeFloat
    max_grad_norm: PositiveFloat
    mixture: MixtureSection
    captions: Literal["sparse", "full"]
    """Which caption the text-to-image loss reads, where the data has both: the two controls of docs/experiments.md."""
    prompt_templates: PositiveInt | None
    """How many prompt templates L_RecA draws from; ``None``: all of reca/objectives/templates.py."""
    save_every: PositiveInt
    eval_every: PositiveInt
    keep_last: PositiveInt

    @model_validator(mode="after")
    def _warmup_ends(self) -> Self:
        if self.warmup_steps > self.max_steps:
            raise ValueError(f"warmup_steps ({self.warmup_steps}) is larger than max_steps ({self.max_steps})")
        return self


class GenerateSection(Section):
    """How benchmark images are drawn."""

    guidance_scale: NonNegativeFloat
    temperature: PositiveFloat
    num_steps: PositiveInt | None = None


class ScenesBenchmark(Section):
    """GenEval's six categories over rendered scenes."""

    prompts_per_category: PositiveInt
    images_per_prompt: PositiveInt
    seed: NonNegativeInt


class UnderstandingBenchmark(Section):
    """Questions about held-out scenes."""

    num_images: PositiveInt
    seed: NonNegativeInt


class FidelityBenchmark(Section):
    """Reconstruction of held-out images from their own embeddings."""

    num_images: PositiveInt
    seed: NonNegativeInt


class EvaluateSection(Section):
    """What is measured, on the base and on the aligned model alike."""

    benchmarks: tuple[BenchmarkName, ...] = Field(min_length=1)
    scenes: ScenesBenchmark
    understanding: UnderstandingBenchmark
    fidelity: FidelityBenchmark
    confidence: float = Field(gt=0.5, lt=1)
    """Coverage of the intervals."""
    bootstrap_draws: PositiveInt

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        if len(set(self.benchmarks)) < len(self.benchmarks):
            raise ValueError(f"a benchmark is named twice: {', '.join(self.benchmarks)}")
        return self


class GateRule(Section):
    """One condition for promotion, on the delta of one score."""

    benchmark: BenchmarkName
    category: str = "overall"
    versus: Literal["base", "champion"]
    bound: Literal["lower", "estimate"]
    """``lower``: the whole interval must lie above ``minimum``; ``estimate``: the delta itself must reach it."""
    minimum: float
    """Smallest acceptable delta, in the score's own unit (scores run from 0 to 1)."""


class RegisterSection(Section):
    """When a model may become champion."""

    gate: tuple[GateRule, ...] = Field(min_length=1)


class HardwareSection(Section):
    """Speed and place; nothing here changes a result (on one device type)."""

    device: Literal["auto", "cpu", "cuda"]
    processes: PositiveInt
    micro_batch_size: PositiveInt
    """Images per forward pass in training and extraction."""
    generate_batch_size: PositiveInt
    threads: PositiveInt
    """CPU threads of one stage."""
    num_workers: NonNegativeInt
    parallel_stages: PositiveInt
    """Stages that may run side by side."""


class TrackingSection(Section):
    """Where runs and versions are remembered."""

    uri: str | None = None
    """MLflow tracking URI; ``None``: SQLite at ``mlruns/mlflow.db``."""
    experiment: str
    copy_limit_mib: NonNegativeInt
    """Weights up to this size are copied into MLflow; bigger ones are registered by their DVC hash."""


class PathsSection(Section):
    """Folders that are neither code nor results."""

    state: str
    """Checkpoints, locks, Prefect's home; relative to the project unless absolute."""


class Config(Section):
    """The whole configuration."""

    seed: NonNegativeInt
    model: ModelSection
    data: DataSection
    extract: ExtractSection
    train: TrainSection
    generate: GenerateSection
    evaluate: EvaluateSection
    register_: RegisterSection = Field(alias="register")
    hardware: HardwareSection
    tracking: TrackingSection
    paths: PathsSection

    @classmethod
    def validated(cls, values: Any) -> Self:
        """Close plain values.

        Raises:
            ConfigError: One line per wrong key: its name, what is allowed, what was given.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            lines = [_explain(problem) for problem in error.errors()]
            raise ConfigError("invalid configuration:\n" + "\n".join(f"  {line}" for line in lines)) from None

    @classmethod
    def load(cls, path: Path = ROOT / "params.yaml") -> Self:
        """Read a composed configuration.

        Raises:
            ConfigError: The file is missing, not YAML, or does not fit the schema.
        """
        from omegaconf import OmegaConf
        from yaml import YAMLError

        if not path.is_file():
            raise ConfigError(f"{path} is missing; write it with `reca compose`")
        try:
            return cls.validated(OmegaConf.to_container(OmegaConf.load(path), resolve=True))
        except YAMLError as error:
            raise ConfigError(f"{path} is not valid YAML ({error}); write it again with `reca compose`") from None

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, keyed as in ``params.yaml``."""
        return self.model_dump(mode="json", by_alias=True)

    def save(self, path: Path = ROOT / "params.yaml") -> bool:
        """Write the file unless it says the same already; returns whether it changed."""
        import yaml

        text = HEADER + yaml.safe_dump(self.to_dict(), sort_keys=True, allow_unicode=True, width=120)
        if path.is_file() and path.read_text() == text:
            return False
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
        return True

    def flat(self) -> dict[str, Any]:
        """``{"train.max_steps": 600, ...}``: what MLflow logs."""
        return flatten(self.to_dict())

    def digest(self, *sections: str) -> str:
        """Hash (16 hex digits) of the named sections, or of the whole configuration."""
        values = self.to_dict()
        chosen = {name: values[name] for name in sections} if sections else values
        return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:16]


def compose(overrides: Sequence[str] = ()) -> Config:
    """Compose ``conf/`` with overrides in Hydra's grammar (``model=janus_tiny``, ``train.max_steps=40``).

    Raises:
        ConfigError: A group, a key or a value is not known; the message names it and what is allowed.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            composed = hydra_compose("config", overrides=list(overrides))
            values = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(f"cannot compose the configuration: {_one_line(error)}") from None
    return Config.validated(values)


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, keys joined by dots."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return flat


def _explain(problem: Any) -> str:
    location = [str(part) for part in problem["loc"]]
    if location and location[0] == "data" and len(location) > 1:
        del location[1]  # pydantic names the member of the union there; the file has no such level
    whole_section = isinstance(problem["input"], dict) or problem["type"] in ("missing", "extra_forbidden")
    given = "" if whole_section else f" (got {problem['input']!r})"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{'.'.join(location) or 'configuration'}: {message}{given}"


def _one_line(error: Exception) -> str:
    cause = error.__cause__ or error
    return " ".join(line.strip() for line in str(cause if str(cause) else error).splitlines() if line.strip())
