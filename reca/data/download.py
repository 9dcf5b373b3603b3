"""Published checkpoints, brought here before a run: from then on a folder like any other, whose hash DVC knows.

``model.hub`` names, for ``checkpoint`` and for each of ``model.parts``, the repository that a missing folder is filled
from. A revision may be a branch; which commit it meant is written beside the files.
"""

import shutil
from pathlib import Path
from typing import Any

from reca.config import Config
from reca.runtime.errors import UserError
from reca.runtime.files import HUB_SOURCE, write_json

UNUSED = ("*.msgpack", "*.h5", "*.onnx", "*.gguf", "*.png", "*.jpg", "*.gif", "*.mp4", "assets/*", "figures/*")
"""Files of a repository that no loader reads."""


def fetch_model(config: Config, root: Path) -> None:
    """Fill the missing folders of the configured model from the hub; what is there is left alone.

    Raises:
        UserError: As :func:`download_repository`.
    """
    for part, source in config.model.hub.items():
        folder = root / (config.model.checkpoint if part == "checkpoint" else config.model.parts[part])
        if not folder.exists():
            download_repository(folder, source, root / config.paths.state, part)


def download_repository(folder: Path, source: str, state: Path, what: str, kind: str = "model") -> str:
    """Bring a repository's files to a folder that is not there yet.

    A download that was cut off goes on where it stopped: it lies under the state folder until it is whole.

    Args:
        folder: Where the files shall lie.
        source: ``REPOSITORY``, ``REPOSITORY@REVISION`` or ``REPOSITORY@REVISION#PATTERN,PATTERN``.
        state: The project's state folder.
        what: What this is, for the messages.
        kind: Of repository: ``model`` or ``dataset``.

    Returns:
        The commit that was received.

    Raises:
        UserError: The hub does not answer, knows no such repository or revision, or wants a login.
    """
    name, _, patterns = source.partition("#")
    repository, _, revision = name.partition("@")
    partial = state / "downloads" / f"{kind}--{repository.replace('/', '--')}"
    print(f"{what}: {folder} is not here; fetching {source} from the hub", flush=True)
    commit = _download(repository, kind, revision or None, patterns.split(",") if patterns else None, partial)
    shutil.rmtree(partial / ".cache", ignore_errors=True)
    write_json(partial / HUB_SOURCE, {"repository": repository, "revision": revision or None, "commit": commit})
    folder.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(partial, folder)
    print(f"{what}: {repository} at commit {commit} is in {folder}", flush=True)
    return commit


def _download(repository: str, kind: str, revision: str | None, patterns: list[str] | None, folder: Path) -> str:
    """Fetch a repository's files into ``folder``; returns the commit that ``revision`` means today."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError

    wanted: dict[str, Any] = {"local_dir": folder, "allow_patterns": patterns, "ignore_patterns": list(UNUSED)}
    try:
        hub = HfApi()
        commit = str(hub.repo_info(repository, repo_type=kind, revision=revision).sha)
        hub.snapshot_download(repository, repo_type=kind, revision=commit, **wanted)
    except GatedRepoError as error:
        raise UserError(
            f"{repository} wants you to accept its licence first: do that on its page, then run `hf auth login` "
            f"({_line(error)})"
        ) from None
    except Exception as error:  # of whichever HTTP library the hub's client is built on: it has changed twice
        name = f"{repository}@{revision}" if revision else repository
        raise UserError(
            f"{name} cannot be fetched from the hub: {_line(error)}. Mend that and run again (a download that was cut "
            "off goes on), or put the files there yourself"
        ) from None
    return commit


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
