"""The base model of a run: where it lies, what names its bytes, and how it is loaded."""

from pathlib import Path

import torch

from reca.config import Config
from reca.models.base import UnifiedModel, load_model
from reca.runtime.errors import UserError
from reca.runtime.hashing import folder_digest, weights_digest


def base_folder(config: Config, root: Path) -> Path:
    """The folder of the base model.

    Raises:
        UserError: It is not there.
    """
    folder = root / config.model.checkpoint
    if not folder.is_dir():
        raise UserError(
            f"{folder} is missing: there is no base model; restore it (`git checkout`, `dvc pull`), or set "
            "model.checkpoint to a folder in the family's official layout"
        )
    return folder


def base_digest(folder: Path) -> str:
    """Identity of a base: its weights and the JSON files (sizes, tokenizer) that say how to read them."""
    return f"{weights_digest(folder)}-{folder_digest(folder, '*.json')}"


def load_base(config: Config, folder: Path, root: Path, device: torch.device | None) -> UnifiedModel:
    """Load the base model; without a device, as its files have it: see :meth:`UnifiedModel.to_eval`.

    Raises:
        UserError: A file of the layout is missing, damaged, or does not fit the others.
    """
    from safetensors import SafetensorError

    try:
        return load_model(config.model.family, folder, config.model.load_options(root), device)
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(
            f"the base model in {folder} cannot be loaded: {error}; restore it (`git checkout`, `dvc pull`)"
        ) from error


def load_encoders(config: Config, folder: Path, root: Path, device: torch.device) -> UnifiedModel:
    """Load what ``extract`` has a use for; see :meth:`UnifiedModel.keep_encoders`.

    Raises:
        UserError: As :func:`load_base`.
    """
    return load_base(config, folder, root, None).keep_encoders().to_eval(device)
