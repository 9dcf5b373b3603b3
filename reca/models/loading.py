"""Loading a model by its family's name; the base model of a run, its digest, and messages for users."""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from reca.models.base import UnifiedModel
from reca.runtime.errors import UserError
from reca.runtime.hashing import folder_digest, weights_digest

FAMILIES = tuple(sorted(path.parent.name for path in Path(__file__).parent.glob("*/model.py")))
"""Names of all families: the folders next to this file that have a ``model.py``."""


def family_class(family: str) -> type[UnifiedModel]:
    """Return the subclass of :class:`UnifiedModel` that ``reca/models/<family>/model.py`` defines.

    Raises:
        ValueError: There is no such family.
    """
    if family not in FAMILIES:
        raise ValueError(f"unknown model family {family!r}; known: {', '.join(FAMILIES)}")
    module = import_module(f"reca.models.{family}.model")
    return next(
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, UnifiedModel) and value.__module__ == module.__name__
    )


def load_model(family: str, checkpoint: Path, options: Mapping[str, Any], device: torch.device | None) -> UnifiedModel:
    """Load a checkpoint of ``family``; see :meth:`UnifiedModel.load`."""
    return family_class(family).load(checkpoint, options, device)


def base_folder(checkpoint: str, root: Path) -> Path:
    """Return the folder of the base model, ``model.checkpoint`` under the project's root.

    Raises:
        UserError: The folder does not exist.
    """
    folder = root / checkpoint
    if not folder.is_dir():
        raise UserError(
            f"the base model {folder} is missing: restore it (`git checkout`, `dvc pull`), or set model.checkpoint "
            "to a folder in the family's official layout"
        )
    return folder


def base_digest(folder: Path) -> str:
    """Return the identity of a base model: digests of its weights and of the JSON files that describe them."""
    return f"{weights_digest(folder)}-{folder_digest(folder, '*.json')}"


def load_base(family: str, folder: Path, options: Mapping[str, Any], device: torch.device | None) -> UnifiedModel:
    """Load a model for a user, usually the base; see :meth:`UnifiedModel.load`.

    Raises:
        UserError: A file of the layout is missing, damaged, or does not fit the others.
    """
    from safetensors import SafetensorError

    try:
        return load_model(family, folder, options, device)
    except (OSError, ValueError, SafetensorError) as error:
        message = f"the model in {folder} cannot be loaded: {error}; restore it (`git checkout`, `dvc pull`)"
        raise UserError(message) from error


def load_encoders(family: str, folder: Path, options: Mapping[str, Any], device: torch.device) -> UnifiedModel:
    """Load the parameters that ``extract`` needs, and no others; see :meth:`UnifiedModel.keep_encoders`.

    Raises:
        UserError: See :func:`load_base`.
    """
    return load_base(family, folder, options, None).keep_encoders().to_eval(device)
