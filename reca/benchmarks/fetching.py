"""Brings what the configured benchmarks need and this project does not ship: prompts and judges, once."""

from pathlib import Path

import httpx

from reca.benchmarks.judges import folders
from reca.benchmarks.prompts import sources
from reca.config import Config
from reca.data.checkpoints import fill
from reca.digest import file_digest
from reca.errors import UserError
from reca.files import whole_file, write_json


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
            f"`python -m reca.nn.mask2former_mmdet CHECKPOINT.pth {folder}`"
        )
    fill(folder, source, state, "a judge")


def fetch_prompts(root: Path, name: str, state: Path) -> None:
    """Fetch a benchmark's missing files, check their digests, and record them.

    Raises:
        UserError: There is no network, or the file is another one.
    """
    folder, published = sources.folder_of(root, name), sources.SOURCES[name]
    record = sources.read_record(folder)
    for source in published.files:
        path = folder / source.file
        if path.is_file():
            continue
        print(f"{name}: fetching {source.url} ({published.licence})", flush=True)
        digest = download(source.url, path, source.sha256)
        if source.sha256 is None:
            print(f"{name}: {source.file} has SHA-256 {digest}, recorded in {folder / sources.RECORD}", flush=True)
        record[source.file] = {"url": source.url, "sha256": digest}
        write_json(folder / sources.RECORD, record)
    if published.dataset and not sources.data_files(folder):
        _fetch_dataset(published.dataset, folder, state)


def _fetch_dataset(dataset: str, folder: Path, state: Path) -> None:
    """Fetch the data files of a data set of the hub, and record them as files that were fetched one by one are."""
    commit = fill(folder, f"{dataset}#*.parquet,*.arrow,README.md", state, "a benchmark's data set", kind="dataset")
    url = f"https://huggingface.co/datasets/{dataset.partition('@')[0]}/tree/{commit}"
    files = {path.relative_to(folder).as_posix(): path for path in sources.data_files(folder)}
    write_json(folder / sources.RECORD, {n: {"url": url, "sha256": file_digest(p)} for n, p in files.items()})


def download(url: str, path: Path, sha256: str | None) -> str:
    """Fetch one file whole; returns its SHA-256.

    Raises:
        UserError: It cannot be had, or is another one than ``sha256`` says.
    """
    by_hand = f"mend that and run again, or put the file there yourself: {path}"
    with whole_file(path) as temporary:
        try:
            with httpx.stream("GET", url, follow_redirects=True, timeout=60) as response, temporary.open("wb") as file:
                response.raise_for_status()
                for chunk in response.iter_bytes():
                    file.write(chunk)
        except (httpx.HTTPError, OSError) as error:
            raise UserError(f"{url} cannot be fetched ({error}); {by_hand}") from None
        digest = file_digest(temporary)
        if sha256 is not None and digest != sha256:
            raise UserError(f"{url} is not the file that was published (SHA-256 {digest}, not {sha256}); {by_hand}")
    return digest
