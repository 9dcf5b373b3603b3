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
from typing import Any, Self

from pydantic import Field, NonNegativeInt, ValidationError

from reca.config import yaml12
from reca.config.base import Fraction, Section
from reca.config.model import ModelSection
from reca.config.sections import (
    AdapterSection,
    BenchmarkName,
    CollagesData,
    DataSection,
    EvaluateSection,
    ExtractSection,
    FidelitySettings,
    FolderData,
    GenerateSection,
    HardwareSection,
    HubData,
    MixtureSection,
    PathsSection,
    PromotionRule,
    RegisterSection,
    ScenesData,
    ScenesSettings,
    TrackingSection,
    TrainSection,
    UnderstandingSettings,
    WebDatasetData,
)

__all__ = [
    "CONF",
    "ROOT",
    "AdapterSection",
    "BenchmarkName",
    "CollagesData",
    "Config",
    "ConfigError",
    "DataSection",
    "FidelitySettings",
    "FolderData",
    "Fraction",
    "HubData",
    "MixtureSection",
    "PromotionRule",
    "ScenesData",
    "ScenesSettings",
    "TrainSection",
    "UnderstandingSettings",
    "WebDatasetData",
    "compose",
    "flatten",
]

ROOT = Path(__file__).resolve().parent.parent.parent
CONF = ROOT / "conf"
HEADER = "# Composed from conf/ by `reca compose`. Do not edit: change conf/ or pass overrides, then compose again.\n"


class ConfigError(Exception):
    """The configuration is wrong; the message names the key, the value and what is allowed."""


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
        if not path.is_file():
            raise ConfigError(f"{path} is missing; write it with `reca compose`")
        try:
            return cls.validated(yaml12.load(path))
        except (yaml12.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is not valid YAML ({error}); write it again with `reca compose`") from None

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, keyed as in ``params.yaml``."""
        return self.model_dump(mode="json", by_alias=True)

    def save(self, path: Path = ROOT / "params.yaml") -> bool:
        """Write the file unless it says the same already; returns whether it changed."""
        text = HEADER + yaml12.dumps(self.to_dict())
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
        nested = isinstance(value, dict) and value  # an empty one is a value of its own
        flat.update(flatten(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value})
    return flat


def _explain(problem: Any) -> str:
    location = [str(part) for part in problem["loc"]]
    if location and location[0] in ("data", "model") and len(location) > 1:
        del location[1]  # pydantic names the member of the union there; the file has no such level
    whole_section = isinstance(problem["input"], dict) or problem["type"] in ("missing", "extra_forbidden")
    given = "" if whole_section else f" (got {problem['input']!r})"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{'.'.join(location) or 'configuration'}: {message}{given}"


def _one_line(error: Exception) -> str:
    cause = error.__cause__ or error
    return " ".join(line.strip() for line in str(cause if str(cause) else error).splitlines() if line.strip())
