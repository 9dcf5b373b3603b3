"""Downloads from the Hugging Face hub before a run; afterwards each is a folder whose hash DVC records.

``model.hub`` names a repository for ``checkpoint`` and for each of ``model.parts``. A revision may be a branch; the
commit that it resolved to is recorded next to the files.
"""

import shutil
from pathlib import Path
from typing import Any

from reca.config import Config
from reca.runtime.errors import UserError
from reca.runtime.files import HUB_SOURCE, write_json

UNUSED = ("*.msgpack", "*.h5", "*.onnx", "*.gguf", "*.fp16*", "*.py", "*.png", "*.jpg", "*.gif", "*.mp4", "assets/*")
"""Files of a repository that no loader reads."""


def fetch_model(config: Config, root: Path) -> None:
    """Download the missing folders of the configured model; existing folders are left unchanged."""
    for part, source in config.model.hub.items():
        folder = root / (config.model.checkpoint if part == "checkpoint" else config.model.parts[part])
        if not folder.exists():
            download_repository(folder, source, root / config.paths.state, part)


def download_repository(folder: Path, source: str, state: Path, purpose: str, kind: str = "model") -> str:
    """Download a repository's files to a new folder.

    An interrupted download continues where it stopped: it is kept in the state folder until complete.

    Args:
        folder: Destination.
        source: ``REPOSITORY``, ``REPOSITORY@REVISION`` or ``REPOSITORY@REVISION#PATTERN,PATTERN``.
        state: The project's state folder.
        purpose: Name of the download in messages.
        kind: Kind of repository: ``model`` or ``dataset``.

    Returns:
        The commit that was downloaded.

    Raises:
        UserError: The hub does not answer, has no such repository or revision, or requires a login.
    """
    name, _, patterns = source.partition("#")
    repository, _, revision = name.partition("@")
    partial = state / "downloads" / f"{kind}--{repository.replace('/', '--')}"
    print(f"{purpose}: {folder} is missing; downloading {source} from the hub", flush=True)
    commit = _download(repository, kind, revision or None, patterns.split(",") if patterns else None, partial)
    shutil.rmtree(partial / ".cache", ignore_errors=True)
    write_json(partial / HUB_SOURCE, {"repository": repository, "revision": revision or None, "commit": commit})
    folder.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(partial, folder)
    print(f"{purpose}: {repository} at commit {commit} is in {folder}", flush=True)
    return commit


def _download(repository: str, kind: str, revision: str | None, patterns: list[str] | None, folder: Path) -> str:
    """Download a repository's files into ``folder``; return the commit that ``revision`` resolves to."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError

    selection: dict[str, Any] = {"local_dir": folder, "allow_patterns": patterns, "ignore_patterns": list(UNUSED)}
    try:
        hub = HfApi()
        commit = str(hub.repo_info(repository, repo_type=kind, revision=revision).sha)
        hub.snapshot_download(repository, repo_type=kind, revision=commit, **selection)
    except GatedRepoError as error:
        raise UserError(
            f"{repository} requires that you accept its licence: do so on its page, then run `hf auth login` "
            f"({_one_line(error)})"
        ) from None
    except Exception as error:  # the hub's client has changed its HTTP library, and so its exceptions, twice
        name = f"{repository}@{revision}" if revision else repository
        raise UserError(
            f"{name} cannot be downloaded from the hub: {_one_line(error)}. Fix that and run again (an interrupted "
            "download continues), or put the files there yourself"
        ) from None
    return commit


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
