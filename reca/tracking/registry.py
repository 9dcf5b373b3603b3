"""The model registry: versions by lineage, the aliases ``challenger`` and ``champion``, and rollback.

Every function that writes expects its caller to hold the store's lock (:func:`reca.tracking.runs.open_store`). The
process may be killed after any step; the same steps, run again, end in the same state:

- A version is created together with all its tags, in one transaction, and is found again by ``lineage.digest``.
- The alias ``champion`` is the truth and moves in one call. The history of champions, a tag of the registered model,
  is written *before* the alias moves forward and *after* it moves back, so entries above the alias in the history
  are steps that never happened; :func:`champion_history` drops them.
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
from reca.tracking.runs import LINEAGE_TAG, Client

CHALLENGER, CHAMPION = "challenger", "champion"
HISTORY_TAG, ROLLED_BACK_TAG = "champion.history", "rolled_back"
MAX_HISTORY = 50
"""Entries of the history of champions."""


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
    """Return the name of a preset's registered model."""
    return f"reca-{preset}"


def find_version(client: Client, name: str, lineage_digest: str) -> Version | None:
    """Return the version of a lineage, or ``None`` if it is not registered."""
    versions = client.search_model_versions(f"name = '{name}' AND tags.`{LINEAGE_TAG}` = '{lineage_digest}'")
    return get_version(client, f"{name}/{min(int(v.version) for v in versions)}") if versions else None


def get_version(client: Client, reference: str) -> Version:
    """Return a version by ``NAME@ALIAS`` or ``NAME/NUMBER``; ``NAME`` alone means its champion.

    Raises:
        UserError: There is no such model, alias or version; the message lists those that exist.
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
        existing = ", ".join(f"{a} (version {v})" for a, v in sorted(aliases.items())) or "none"
        raise UserError(f"{name} has no alias {alias!r}; there are: {existing}")
    number = number or aliases[alias or CHAMPION]
    try:
        version = client.get_model_version(name, number)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        numbers = ", ".join(sorted(_numbers(client, name), key=int)) or "none"
        raise UserError(f"{name} has no version {number}; there are: {numbers}") from None
    return Version(
        name=name,
        number=str(version.version),
        run_id=version.run_id or "",
        tags=dict(version.tags),
        aliases=tuple(sorted(alias for alias, alias_number in aliases.items() if alias_number == str(version.version))),
        description=version.description or "",
    )


def create_version(
    client: Client, name: str, run_id: str, model_id: str, tags: Mapping[str, str], description: str
) -> Version:
    """Create the version of a run's model with all its tags at once."""
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    created = client.create_model_version(
        name, f"models:/{model_id}", run_id, tags=dict(tags), description=description, model_id=model_id
    )
    return get_version(client, f"{name}/{created.version}")


def update_version(client: Client, version: Version, tags: Mapping[str, str], description: str) -> None:
    """Write the tags and the description of a version that have changed."""
    for key, value in tags.items():
        if version.tags.get(key) != value:
            client.set_model_version_tag(version.name, version.number, key, value)
    if version.description != description:
        client.update_model_version(version.name, version.number, description)


def get_champion(client: Client, name: str) -> Version | None:
    """Return the current champion; ``None`` if there is no champion or no such model yet."""
    try:
        aliases = client.get_registered_model(name).aliases
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return get_version(client, f"{name}@{CHAMPION}") if CHAMPION in aliases else None


def champion_history(client: Client, name: str) -> list[str]:
    """Return the numbers of the champions, the current one last, without entries of steps that never happened."""
    model = client.get_registered_model(name)
    current = str(model.aliases[CHAMPION]) if CHAMPION in model.aliases else None
    existing = set(_numbers(client, name))
    history = [number for number in json.loads(model.tags.get(HISTORY_TAG, "[]")) if number in existing]
    if current is None:
        return []
    if current in history:
        return history[: len(history) - history[::-1].index(current)]
    return [*history, current]  # the alias was moved by hand


def set_challenger(client: Client, version: Version) -> None:
    """Make a version the challenger."""
    client.set_registered_model_alias(version.name, CHALLENGER, version.number)


def promote(client: Client, version: Version) -> None:
    """Make a version the champion; the previous one stays in the history for :func:`rollback`."""
    history = champion_history(client, version.name)
    if history[-1:] == [version.number]:
        return
    _write_history(client, version.name, [*history, version.number])
    client.set_registered_model_alias(version.name, CHAMPION, version.number)


def was_champion(client: Client, version: Version) -> bool:
    """Return whether a version is or was champion: a rerun of its lineage must not undo later changes."""
    return ROLLED_BACK_TAG in version.tags or version.number in champion_history(client, version.name)


def rollback(client: Client, name: str) -> tuple[Version, Version]:
    """Make the previous champion the champion again.

    Returns:
        The version that was rolled back and the current champion.

    Raises:
        UserError: There is no such model, no champion, or none before it.
    """
    rolled_back = get_version(client, f"{name}@{CHAMPION}")
    history = champion_history(client, name)
    if len(history) < 2:
        raise UserError(f"{rolled_back} is the first champion of {name}; there is none before it to go back to")
    # Marked first: were the mark missing after a kill, the next run of the same lineage would promote it again.
    client.set_model_version_tag(name, rolled_back.number, ROLLED_BACK_TAG, f"to version {history[-2]}")
    client.set_registered_model_alias(name, CHAMPION, history[-2])
    _write_history(client, name, history[:-1])
    return rolled_back, get_version(client, f"{name}@{CHAMPION}")


def log_model(artifacts: Mapping[str, Path], requirements: Sequence[str], parameters: Mapping[str, float]) -> str:
    """Log the serving code with its artifacts to the active run; return MLflow's id of the model.

    The code of this package is stored with it, so that the model loads where only the requirements are installed.
    Its settings are one of the artifacts: MLflow would log a ``model_config`` among the run's parameters.

    Args:
        artifacts: Files for ``reca/tracking/serving.py``: ``settings``, and ``checkpoint`` or ``reference``.
        requirements: Exact pins; MLflow's own guess would load the model to see what it imports.
        parameters: Parameters of ``predict`` with defaults; MLflow drops any that the signature does not name.
    """
    package = Path(__file__).parents[1]
    text = Schema([ColSpec("string")])
    kinds = {int: "long", float: "double"}
    schema = ParamSchema([ParamSpec(name, kinds[type(value)], value) for name, value in parameters.items()])
    with warnings.catch_warnings(record=True):  # it asks for type hints, which cannot describe parameters
        info = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(package / "tracking/serving.py"),
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
    """Return the numbers of all versions as strings; MLflow returns integers in some calls."""
    numbers: list[str] = []
    token = None
    while True:
        page = client.search_model_versions(f"name = '{name}'", page_token=token)
        numbers += [str(version.version) for version in page]
        token = page.token
        if not token:
            return numbers


def _write_history(client: Client, name: str, history: Sequence[str]) -> None:
    client.set_registered_model_tag(name, HISTORY_TAG, json.dumps(list(history)[-MAX_HISTORY:]))
