"""``Config``: composed by Hydra from ``conf/``, validated by pydantic, written to and read from ``params.yaml``."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

from pydantic import ValidationError

from reca.config import yaml_io
from reca.config.sections import AllSections

ROOT = Path(__file__).resolve().parents[2]
CONF = ROOT / "conf"
HEADER = "# Composed from conf/ by `reca compose`. Do not edit: change conf/ or pass overrides, then compose again.\n"


class ConfigError(Exception):
    """Invalid configuration; the message names the key, the value and the allowed values."""


class Config(AllSections):
    """The whole configuration, and its file."""

    @classmethod
    def validated(cls, values: Any) -> Self:
        """Return the configuration that plain values describe.

        Raises:
            ConfigError: One line per wrong key, with the allowed and the given value.
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
            ConfigError: The file is missing, is not YAML, or does not fit the schema.
        """
        if not path.is_file():
            raise ConfigError(f"{path} is missing; write it with `reca compose`")
        try:
            return cls.validated(yaml_io.load(path))
        except (yaml_io.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is not valid YAML ({error}); write it again with `reca compose`") from None

    def to_yaml(self) -> str:
        """Return the text of ``params.yaml``."""
        return HEADER + yaml_io.dumps(self.to_dict())

    def to_dict(self, *sections: str) -> dict[str, Any]:
        """Return plain containers keyed as in ``params.yaml``: all sections, or the named ones."""
        values = self.model_dump(mode="json", by_alias=True)
        return {name: values[name] for name in sections} if sections else values

    def flat(self) -> dict[str, Any]:
        """Return ``{"train.max_steps": 600, ...}``, the parameters that MLflow logs."""
        return flatten(self.to_dict())


def compose(overrides: Sequence[str] = ()) -> Config:
    """Compose ``conf/`` with overrides in Hydra's grammar (``model=janus_tiny``, ``train.max_steps=40``).

    Equal overrides are composed once per process.

    Raises:
        ConfigError: A group, a key or a value does not exist; the message names it and the allowed ones.
    """
    return _compose(tuple(overrides))


@lru_cache(maxsize=64)
def _compose(overrides: tuple[str, ...]) -> Config:
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
    """Return nested dictionaries as one, with keys joined by dots; an empty dictionary is a value."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _explain(problem: Any) -> str:
    location = [str(part) for part in problem["loc"]]
    if location and location[0] in ("data", "model") and len(location) > 1:
        del location[1]  # pydantic inserts the union's member there, a level that the file does not have
    whole_section = isinstance(problem["input"], dict) or problem["type"] in ("missing", "extra_forbidden")
    value = "" if whole_section else f" (got {problem['input']!r})"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{'.'.join(location) or 'configuration'}: {message}{value}"


def _one_line(error: Exception) -> str:
    cause = error.__cause__ or error
    return " ".join(line.strip() for line in str(cause if str(cause) else error).splitlines() if line.strip())
