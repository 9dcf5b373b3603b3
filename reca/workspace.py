"""Where a run works: the project itself, under one lock, or a worktree of its own."""

import os
from pathlib import Path

from reca.config import ROOT
from reca.errors import UserError


def project_root(start: Path | None = None) -> Path:
    """The project that ``start`` (or the working directory) lies in: the nearest folder with a ``dvc.yaml``.

    Raises:
        UserError: Neither that folder's parents nor the folder of this code is a project.
    """
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        if (folder / "dvc.yaml").is_file():
            return folder
    if (ROOT / "params.yaml").is_file():
        return ROOT
    raise UserError(f"no project here: neither {here} nor a folder above it has a dvc.yaml; change into the project")
