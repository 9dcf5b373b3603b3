"""Brings what the configured benchmarks need and this project does not ship: prompts and judges, once."""

import shutil
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
    from huggingface_hub import HfApi

    repository, _, revision = dataset.partition("@")
    partial = state / "downloads" / f"datasets--{repository.replace('/', '--')}"
    wanted = ["*.parquet", "*.arrow", "README.md"]
    print(f"fetching the data set {repository} from the hub", flush=True)
    try:
        hub = HfApi()
        commit = str(hub.dataset_info(repository, revision=revision or None).sha)
        hub.snapshot_download(
            repository, repo_type="dataset", revision=commit, local_dir=partial, allow_patterns=wanted
        )
    except Exception as error:  # of whichever HTTP library the hub's client is built on
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(
            f"the data set {repository} cannot be fetched ({reason}); mend that and run again, or put its Parquet "
            f"files into {folder} yourself"
        ) from None
    shutil.rmtree(partial / ".cache", ignore_errors=True)
    url = f"https://huggingface.co/datasets/{repository}/tree/{commit}"
    files = {path.relative_to(partial).as_posix(): path for path in sources.data_files(partial)}
    write_json(partial / sources.RECORD, {n: {"url": url, "sha256": file_digest(p)} for n, p in files.items()})
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(partial, folder)


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
