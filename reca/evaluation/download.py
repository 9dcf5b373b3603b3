"""Download of the prompts and judges that the configured benchmarks need and this project does not ship."""

import os
import subprocess
import tempfile
from pathlib import Path
from typing import BinaryIO

import httpx

from reca.config import Config
from reca.data.download import download_repository
from reca.evaluation import prompt_sources as sources
from reca.evaluation.judges import local_models
from reca.runtime.errors import UserError
from reca.runtime.files import atomic_file, write_json
from reca.runtime.hashing import file_digest


def fetch(config: Config, root: Path) -> None:
    """Fetch the missing files of ``evaluate.benchmarks``; existing files stay as they are.

    Raises:
        UserError: A download failed; the message names the source, and the place for a copy made by hand.
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
    """Fetch a judge from the hub unless its folder exists.

    Raises:
        UserError: The download failed, or the judge must be converted by hand.
    """
    folder = local_models.judge_folder(root, source)
    if folder.exists():
        return
    if source.startswith("mmdet/"):
        raise UserError(
            f"{folder} is missing: download mmdet's checkpoint and convert it with "
            f"`python -m tools.convert_mmdet CHECKPOINT.pth {folder}`"
        )
    download_repository(folder, source, state, "a judge")


def fetch_prompts(root: Path, name: str, state: Path) -> None:
    """Fetch a benchmark's missing files and record their digests.

    Raises:
        UserError: There is no network, or no such file.
    """
    folder, published = sources.benchmark_folder(root, name), sources.SOURCES[name]
    record = sources.read_record(folder)
    for source in published.files:
        path = folder / source.file
        if path.is_file():
            continue
        print(f"{name}: fetching {source.address} ({published.licence})", flush=True)
        with atomic_file(path) as temporary:
            try:
                (_fetch_from_git if source.commit else _fetch_url)(source, temporary)
            except (httpx.HTTPError, OSError, subprocess.SubprocessError) as error:
                raise UserError(
                    f"{source.address} cannot be fetched ({_reason(error)}); fix that and run again, or save the file "
                    f"yourself as {path}"
                ) from None
            digest = file_digest(temporary)
        print(f"{name}: {source.file} has SHA-256 {digest}, recorded in {folder / sources.RECORD}", flush=True)
        record[source.file] = {"url": source.address, "sha256": digest}
        write_json(folder / sources.RECORD, record)
    if published.dataset and not sources.data_files(folder):
        _fetch_dataset(published.dataset, folder, state)


def _fetch_dataset(dataset: str, folder: Path, state: Path) -> None:
    commit = download_repository(
        folder, f"{dataset}#*.parquet,*.arrow,README.md", state, "a benchmark's data set", kind="dataset"
    )
    url = f"https://huggingface.co/datasets/{dataset.partition('@')[0]}/tree/{commit}"
    files = {path.relative_to(folder).as_posix(): path for path in sources.data_files(folder)}
    write_json(folder / sources.RECORD, {n: {"url": url, "sha256": file_digest(p)} for n, p in files.items()})


def _fetch_url(source: sources.SourceFile, path: Path) -> None:
    with httpx.stream("GET", source.url, follow_redirects=True, timeout=60) as response, path.open("wb") as file:
        response.raise_for_status()
        for chunk in response.iter_bytes():
            file.write(chunk)


def _fetch_from_git(source: sources.SourceFile, path: Path) -> None:
    """Fetch a file of a commit; Git checks commit, trees and file against the commit's name."""
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
    stderr = getattr(error, "stderr", None)  # git's own words, not only its exit status
    return " ".join(stderr.decode(errors="replace").split()) if stderr else str(error)
