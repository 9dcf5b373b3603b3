"""Sources of the published benchmarks' prompts, and the check that local files are the published ones.

No prompt is shipped. :mod:`reca.evaluation.download` puts the files into ``data/benchmarks/<name>/``. A file of a Git
repository is pinned by its commit, which is a digest of everything in the repository. After the first download every
use compares the files with the SHA-256 in ``sources.json``.
"""

import json
import tomllib
from dataclasses import dataclass
from pathlib import Path

from reca.runtime.errors import UserError
from reca.runtime.hashing import file_digest

FOLDER = Path("data/benchmarks")
RECORD = "sources.json"
"""Record of a download: file -> URL and SHA-256."""


@dataclass(frozen=True)
class SourceFile:
    """One file of a benchmark."""

    file: str
    """Local name."""
    url: str
    """URL of the file, or of its Git repository."""
    commit: str = ""
    """Commit of the repository."""
    path: str = ""
    """Path in the repository."""

    @property
    def address(self) -> str:
        """A link that a person can open to download the file by hand."""
        return f"{self.url}/blob/{self.commit}/{self.path}" if self.commit else self.url


@dataclass(frozen=True)
class PublishedFiles:
    """Everything that a benchmark needs and this project does not ship."""

    files: tuple[SourceFile, ...] = ()
    dataset: str = ""
    """Data set of the hub, ``REPOSITORY@REVISION``, with Parquet or Arrow files."""
    licence: str = ""


def _read_sources() -> dict[str, PublishedFiles]:
    table = tomllib.loads(Path(__file__).with_suffix(".toml").read_text())
    files = {name: tuple(SourceFile(**file) for file in entry.pop("files", ())) for name, entry in table.items()}
    return {name: PublishedFiles(files[name], **entry) for name, entry in table.items()}


SOURCES = _read_sources()
"""Files by benchmark. WISE's *verified* version has no address here: its three files are copied in by hand."""


def benchmark_folder(root: Path, name: str) -> Path:
    """Return the folder of a benchmark's files."""
    return root / FOLDER / name


def verified_folder(root: Path, name: str) -> Path:
    """Return a benchmark's folder after checking that it holds the published files.

    Raises:
        UserError: A file is missing or differs from the recorded digest; the message names its source.
    """
    folder, published = benchmark_folder(root, name), SOURCES[name]
    record = read_record(folder)
    for source in published.files:
        path = folder / source.file
        if not path.is_file():
            raise UserError(_missing(path, source.address))
    if published.dataset and not data_files(folder):
        repository = published.dataset.partition("@")[0]
        raise UserError(_missing(folder, f"https://huggingface.co/datasets/{repository}"))
    for file, entry in record.items():
        path = folder / file
        if not path.is_file() or file_digest(path) != entry["sha256"]:
            raise UserError(f"{path} is not what was fetched from {entry['url']}; delete it and fetch it again")
    return folder


def _missing(path: Path, url: str) -> str:
    return (
        f"{path} is missing. `reca compose` and `reca evaluate` fetch it when there is a network; without one, "
        f"download it elsewhere from {url}"
    )


def data_files(folder: Path) -> list[Path]:
    """Return the Parquet and Arrow files of a data set, in order."""
    return sorted([*folder.rglob("*.parquet"), *folder.rglob("*.arrow")]) if folder.is_dir() else []


def read_record(folder: Path) -> dict[str, dict[str, str]]:
    """Return the record of a download; empty if the files were copied in by hand.

    Raises:
        UserError: The record is damaged.
    """
    path = folder / RECORD
    if not path.is_file():
        return {}
    try:
        return {str(file): dict(entry) for file, entry in json.loads(path.read_text()).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error}); delete {folder} and fetch it again") from None
