"""Judges that are models in local folders: where they lie and who they are."""

import json
from pathlib import Path

from reca.evaluation.benchmark import Judge
from reca.runtime.errors import UserError
from reca.runtime.files import HUB_SOURCE
from reca.runtime.hashing import weights_digest

JUDGES = Path("data/judges")
CONVERTED = "converted_from.json"
"""Written by ``reca.evaluation.judges.convert_mmdet``."""


def folder_of(root: Path, source: str) -> Path:
    """Where the judge ``REPOSITORY@REVISION`` lies."""
    return root / JUDGES / source.partition("@")[0].rpartition("/")[2]


def present(root: Path, source: str) -> Path:
    """The folder of a judge.

    Raises:
        UserError: It is not there.
    """
    folder = folder_of(root, source)
    if not folder.is_dir():
        raise UserError(
            f"the judge {source} is missing: {folder} does not exist. `reca compose` and `reca evaluate` fetch it from "
            "the hub when there is a network; or put the repository's files there yourself"
        )
    return folder


def identity(root: Path, *sources: str) -> Judge:
    """One identity for all the models that judge together: their names, and a digest of their weights.

    Raises:
        UserError: One is not there.
    """
    folders = [present(root, source) for source in sources]
    names = "+".join(folder.name for folder in folders)
    return Judge(name=names, version="+".join(weights_digest(folder)[:16] for folder in folders))


def origin(folder: Path) -> str:
    """Which published weights a folder holds, as far as the files beside it tell: a repository, or an mmdet file."""
    for name, key in ((CONVERTED, "official"), (HUB_SOURCE, "repository")):
        if (folder / name).is_file():
            try:
                return str(json.loads((folder / name).read_text())[key] or "")
            except (ValueError, KeyError):
                return ""
    return ""
