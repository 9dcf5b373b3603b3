"""Brings what the configured benchmarks need and this project does not ship: prompts and judges, once."""

import os
import subprocess
import tempfile
from pathlib import Path
from typing import BinaryIO

import httpx

from reca.config import Config
from reca.data.download import download_repository
from reca.evaluation import prompt_sources as sources
from reca.evaluation.judges import local_models as folders
from reca.runtime.errors import UserError
from reca.runtime.files import atomic_file, write_json
from reca.runtime.hashing import file_digest


def fetch(config: Config, root: Path) -> None:
    """Fetch what is missing for ``evaluate.benchmarks``; what is there is left alone.

    Raises:
        UserError: Something cannot be fetched; the message says from where, and where to put it by hand.
    """
    state = root / config.paths.state
    for name in config.evaluate.benchmarks:
        if name in sources.SOURCES and not (name == "wise" and config.evaluate.wise.version == "verified"):  # type: ignore[union-attr]
            fetch_prompts(root, name, state)
    if (geneval := config.evaluate.geneval) and "geneval" in config.evaluate.benchmarks:
        for source in (geneval.detector, geneval.clip):
            fetch_judge(root, source, state)
    for source in config.evaluate.fidelity.encoders if "fidelity" in config.evaluate.benchmarks else ():
        fetch_judge(root, source, state)


def fetch_judge(root: Path, source: str, state: Path) -> None:
    """Bring a judge here from the hub, unless it is here.

    Raises:
        UserError: It cannot be fetched; or it is one that must be converted by hand.
    """
    folder = folders.folder_of(root, source)
    if folder.exists():
        return
    if source.startswith("mmdet/"):
        raise UserError(
            f"{folder} is missing: download mmdet's checkpoint and convert it with "
            f"`python -m reca.evaluation.judges.convert_mmdet CHECKPOINT.pth {folder}`"
        )
    download_repository(folder, source, state, "a judge")


def fetch_prompts(root: Path, name: str, state: Path) -> None:
    """Fetch a benchmark's missing files and record their digests.

    Raises:
        UserError: There is no network, or no such file.
    """
    folder, published = sources.folder_of(root, name), sources.SOURCES[name]
    record = sources.read_record(folder)
    for source in published.files:
        path = folder / source.file
        if path.is_file():
            continue
        print(f"{name}: fetching {source.address} ({published.licence})", flush=True)
        with atomic_file(path) as temporary:
            try:
                (_from_git if source.commit else _download)(source, temporary)
            except (httpx.HTTPError, OSError, subprocess.SubprocessError) as error:
                raise UserError(
                    f"{source.address} cannot be fetched ({_reason(error)}); mend that and run again, or put the file "
                    f"there yourself: {path}"
                ) from None
            digest = file_digest(temporary)
        print(f"{name}: {source.file} has SHA-256 {digest}, recorded in {folder / sources.RECORD}", flush=True)
        record[source.file] = {"url": source.address, "sha256": digest}
        write_json(folder / sources.RECORD, record)
    if published.dataset and not sources.data_files(folder):
        _fetch_dataset(published.dataset, folder, state)


def _fetch_dataset(dataset: str, folder: Path, state: Path) -> None:
    """Fetch the data files of a data set of the hub, and record them as files that were fetched one by one are."""
    commit = download_repository(
        folder, f"{dataset}#*.parquet,*.arrow,README.md", state, "a benchmark's data set", kind="dataset"
    )
    url = f"https://huggingface.co/datasets/{dataset.partition('@')[0]}/tree/{commit}"
    files = {path.relative_to(folder).as_posix(): path for path in sources.data_files(folder)}
    write_json(folder / sources.RECORD, {n: {"url": url, "sha256": file_digest(p)} for n, p in files.items()})


def _download(source: sources.Source, path: Path) -> None:
    with httpx.stream("GET", source.url, follow_redirects=True, timeout=60) as response, path.open("wb") as file:
        response.raise_for_status()
        for chunk in response.iter_bytes():
            file.write(chunk)


def _from_git(source: sources.Source, path: Path) -> None:
    """Fetch one file of one commit; Git checks commit, trees and file against the commit's name."""
    with tempfile.TemporaryDirectory() as repository, path.open("wb") as file:

        def git(*words: str, output: BinaryIO | None = None) -> None:
            command = ["git", "-C", repository, *words]
            quiet = {**os.environ, "GIT_TERMINAL_PROMPT": "0"}
            subprocess.run(command, check=True, env=quiet, stdout=output, stderr=subprocess.PIPE, timeout=600)

        git("init", "--quiet", "--bare")
        git("remote", "add", "origin", source.url)
        git("fetch", "--quiet", "--depth=1", "--filter=blob:none", "origin", source.commit)
        git("cat-file", "blob", f"{source.commit}:{source.path}", output=file)


def _reason(error: Exception) -> str:
    said = getattr(error, "stderr", None)  # of git: why, not only that it failed
    return " ".join(said.decode(errors="replace").split()) if said else str(error)
