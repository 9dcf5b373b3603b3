"""``reca export NAME@ALIAS --to FOLDER``: a registered model in the files that its family's own tools open."""

import argparse
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow
import torch

from reca.config import Config
from reca.models.loading import base_folder, load_base
from reca.models.weights import read_json
from reca.runtime.errors import UserError
from reca.runtime.files import HUB_SOURCE
from reca.tracking import registry, runs
from reca.tracking.serving import link_from_dvc_cache

NOT_COPIED = ("*.index.json", "card.json", HUB_SOURCE)
"""Files of a base's folder that are about its weights, or about how it came."""


def export_command(arguments: argparse.Namespace, root: Path) -> int:
    """``reca export NAME@ALIAS --to FOLDER [--dtype bfloat16]``: find the version's files, then :func:`export`."""
    with runs.open_store_read_only(runs.locate_store(Config.load(root / "params.yaml"), root)) as client:
        version = registry.get_version(client, arguments.model)
        logged = mlflow.artifacts.download_artifacts(f"models:/{version.name}/{version.number}")
    files = Path(logged) / "artifacts"
    reference = files / "reference.json"
    try:
        checkpoint = link_from_dvc_cache(read_json(reference)) if reference.is_file() else files / "model"
        export(checkpoint, read_json(files / "settings.json"), root, arguments.to, arguments.dtype)
    except FileNotFoundError as error:
        raise UserError(str(error)) from None
    print(f"{version} is in {arguments.to}")
    return 0


def export(checkpoint: Path, settings: Mapping[str, Any], root: Path, target: Path, dtype: str | None = None) -> None:
    """Write a trained checkpoint for its family's own tools, with the small files that only the base's folder has.

    ``settings`` are those of a registered version, with folders relative to ``root``. ``dtype`` is torch's name of one;
    without it every tensor gets the dtype that it has in the base.

    Raises:
        UserError: ``target`` exists, or the base is not here.
    """
    if target.exists():
        raise UserError(f"{target} exists already: name a new folder")
    parts = {name: str(root / folder) for name, folder in settings["options"]["parts"].items()}
    options = {**settings["options"], "parts": parts}
    base = base_folder(options["checkpoint"], root)
    model = load_base(settings["family"], checkpoint, options, None)
    original = {} if dtype else load_base(settings["family"], base, options, None).state_dict()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point():
            tensor.data = tensor.to(getattr(torch, dtype) if dtype else original.get(name, tensor).dtype)
    model.save_official(target, for_scripts=True)
    if any(target.glob("*.json")):  # a layout, not a state dict alone
        for file in Path(parts.get("base", base)).iterdir():
            if file.suffix in (".json", ".txt", ".jinja") and not any(map(file.match, NOT_COPIED)):
                shutil.copy(file, target)
