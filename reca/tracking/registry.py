"""The model registry: versions by lineage, the aliases ``challenger`` and ``champion``, and the way back.

Every function that writes expects its caller to hold the store's lock (:func:`reca.tracking.runs.opened`). Each step
can be the last one before a kill, and the same steps, taken again, end in the same state:

- A version is created together with all its tags, in one transaction, and is found again by ``lineage.digest``.
- The alias ``champion`` is the truth and moves in one call. The history of champions, a tag of the registered model,
  is written *before* the alias moves forward and *after* it moves back, so what is above the alias in the history
  is a step that was never taken; :func:`champions` drops it.
"""

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

from reca.runtime.errors import UserError
from reca.tracking.runs import LINEAGE, Client

CHALLENGER, CHAMPION = "challenger", "champion"
HISTORY, ROLLED_BACK = "champion.history", "rolled_back"
KEPT = 50
"""Champions that are remembered."""


@dataclass(frozen=True)
class Version:
    """A version of a registered model."""

    name: str
    number: str
    run_id: str
    tags: Mapping[str, str]
    aliases: tuple[str, ...]
    description: str = ""

    def __str__(self) -> str:
        return f"{self.name} version {self.number}"


def model_name(preset: str) -> str:
    """The registered model of a preset."""
    return f"reca-{preset}"


def find(client: Client, name: str, lineage_digest: str) -> Version | None:
    """The version of a lineage, if it was registered."""
    versions = client.search_model_versions(f"name = '{name}' AND tags.`{LINEAGE}` = '{lineage_digest}'")
    return resolve(client, f"{name}/{min(int(v.version) for v in versions)}") if versions else None


def resolve(client: Client, reference: str) -> Version:
    """A version by ``NAME@ALIAS`` or ``NAME/NUMBER``; ``NAME`` alone means its champion.

    Raises:
        UserError: There is no such model, alias or version; the message lists those that are there.
    """
    name, alias, number = _parts(reference)
    try:
        model = client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        names = ", ".join(model.name for model in client.search_registered_models()) or "none"
        raise UserError(f"no registered model {name!r}; there are: {names}") from None
    aliases = {alias: str(version) for alias, version in model.aliases.items()}
    if alias is not None and alias not in aliases:
        there = ", ".join(f"{a} (version {v})" for a, v in sorted(aliases.items())) or "none"
        raise UserError(f"{name} has no alias {alias!r}; there are: {there}")
    number = number or aliases[alias or CHAMPION]
    try:
        found = client.get_model_version(name, number)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        numbers = ", ".join(sorted(_numbers(client, name), key=int)) or "none"
        raise UserError(f"{name} has no version {number}; there are: {numbers}") from None
    return Version(
        name=name,
        number=str(found.version),
        run_id=found.run_id or "",
        tags=dict(found.tags),
        aliases=tuple(sorted(alias for alias, version in aliases.items() if version == str(found.version))),
        description=found.description or "",
    )


def create(client: Client, name: str, run_id: str, model_id: str, tags: Mapping[str, str], description: str) -> Version:
    """Create the version of a run's model with all its tags at once."""
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    created = client.create_model_version(
        name, f"models:/{model_id}", run_id, tags=dict(tags), description=description, model_id=model_id
    )
    return resolve(client, f"{name}/{created.version}")


def update(client: Client, version: Version, tags: Mapping[str, str], description: str) -> None:
    """Write what changed of a version's tags and description."""
    for key, value in tags.items():
        if version.tags.get(key) != value:
            client.set_model_version_tag(version.name, version.number, key, value)
    if version.description != description:
        client.update_model_version(version.name, version.number, description)


def champion(client: Client, name: str) -> Version | None:
    """The current champion; ``None``: there is none, or no such model yet."""
    try:
        aliases = client.get_registered_model(name).aliases
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return resolve(client, f"{name}@{CHAMPION}") if CHAMPION in aliases else None


def champions(client: Client, name: str) -> list[str]:
    """Version numbers that were champion, the current one last; steps that were never taken are left out."""
    model = client.get_registered_model(name)
    current = str(model.aliases[CHAMPION]) if CHAMPION in model.aliases else None
    there = set(_numbers(client, name))
    history = [number for number in json.loads(model.tags.get(HISTORY, "[]")) if number in there]
    if current is None:
        return []
    if current in history:
        return history[: len(history) - history[::-1].index(current)]
    return [*history, current]  # somebody moved the alias by hand


def challenge(client: Client, version: Version) -> None:
    """Make a version the challenger."""
    client.set_registered_model_alias(version.name, CHALLENGER, version.number)


def promote(client: Client, version: Version) -> None:
    """Make a version the champion; the one before stays in the history for :func:`rollback`."""
    history = champions(client, version.name)
    if history[-1:] == [version.number]:
        return
    _write_history(client, version.name, [*history, version.number])
    client.set_registered_model_alias(version.name, CHAMPION, version.number)


def was_decided(client: Client, version: Version) -> bool:
    """Whether a version was champion already: a rerun of its lineage must not undo what came after."""
    return ROLLED_BACK in version.tags or version.number in champions(client, version.name)


def rollback(client: Client, name: str) -> tuple[Version, Version]:
    """Make the previous champion the champion again.

    Returns:
        The version that was taken back and the one that is champion now.

    Raises:
        UserError: There is no such model, no champion, or none before it.
    """
    taken_back = resolve(client, f"{name}@{CHAMPION}")
    history = champions(client, name)
    if len(history) < 2:
        raise UserError(f"{taken_back} is the first champion of {name}; there is none before it to go back to")
    # Marked first: were the mark missing after a kill, the next run of the same lineage would promote it again.
    client.set_model_version_tag(name, taken_back.number, ROLLED_BACK, f"to version {history[-2]}")
    client.set_registered_model_alias(name, CHAMPION, history[-2])
    _write_history(client, name, history[:-1])
    return taken_back, resolve(client, f"{name}@{CHAMPION}")


def log_model(artifacts: Mapping[str, Path], requirements: Sequence[str], parameters: Mapping[str, float]) -> str:
    """Log the serving code with its artifacts to the active run; returns MLflow's id of the model.

    The code of this package is stored with it, so that the model loads where only the requirements are installed.
    Its settings are one of the artifacts: MLflow would log a ``model_config`` among the run's parameters.

    Args:
        artifacts: What ``reca/tracking/serving.py`` reads: ``settings``, and ``checkpoint`` or ``reference``.
        requirements: Exact pins; MLflow's own guess would load the model to see what it imports.
        parameters: What ``predict`` takes besides prompts, with defaults; what the signature does not name is dropped.
    """
    package = Path(__file__).parent
    text = Schema([ColSpec("string")])
    kinds = {int: "long", float: "double"}
    schema = ParamSchema([ParamSpec(name, kinds[type(value)], value) for name, value in parameters.items()])
    with warnings.catch_warnings(record=True):  # it asks for type hints, but their signatures have no parameters
        info = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(package / "serving.py"),
            artifacts={name: str(path) for name, path in artifacts.items()},
            code_paths=[str(package)],
            pip_requirements=list(requirements),
            signature=ModelSignature(text, text, schema),
        )
    model_id: str = info.model_id
    return model_id


def _parts(reference: str) -> tuple[str, str | None, str | None]:
    if "@" in reference:
        name, alias = reference.rsplit("@", 1)
        return name, alias or CHAMPION, None
    if "/" in reference:
        name, number = reference.rsplit("/", 1)
        return name, None, number
    return reference, CHAMPION, None


def _numbers(client: Client, name: str) -> list[str]:
    """The numbers of all versions; MLflow hands them out as integers here and as strings there."""
    found: list[str] = []
    token = None
    while True:
        page = client.search_model_versions(f"name = '{name}'", page_token=token)
        found += [str(version.version) for version in page]
        token = page.token
        if not token:
            return found


def _write_history(client: Client, name: str, history: Sequence[str]) -> None:
    client.set_registered_model_tag(name, HISTORY, json.dumps(list(history)[-KEPT:]))
