"""Where the prompts of the published benchmarks come from, and whether what lies here is what was published.

None of them is shipped. :mod:`reca.benchmarks.fetching` brings them into ``data/benchmarks/<name>/``; from then on they
are checked against the digests below, or, where none was known when this was written, against those recorded at the
first fetch in ``sources.json``.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from reca.digest import file_digest
from reca.errors import UserError

FOLDER = Path("data/benchmarks")
RECORD = "sources.json"
"""What was fetched: file -> URL and SHA-256."""
_ELLA = "https://raw.githubusercontent.com/TencentQQGYLab/ELLA/025f650e9b36b9603d606042635d98da09e870de"
_WISE = "https://raw.githubusercontent.com/PKU-YuanGroup/WISE"
_WISE_LEGACY = f"{_WISE}/9391e95552db88efe5bd6fd2582fcec580adbbfd/data"


@dataclass(frozen=True)
class Source:
    """One file of a benchmark."""

    file: str
    url: str
    sha256: str | None = None
    """``None``: not known when this was written; recorded at the first fetch and held to from then on."""


@dataclass(frozen=True)
class Published:
    """Everything a benchmark needs that is not shipped."""

    files: tuple[Source, ...] = ()
    dataset: str = ""
    """A data set of the hub, ``REPOSITORY@REVISION``, whose Parquet or Arrow files are wanted."""
    licence: str = ""


SOURCES = {
    "dpgbench": Published(
        files=(Source("dpg_bench.csv", f"{_ELLA}/dpg_bench/dpg_bench.csv"),),
        licence="Apache-2.0, TencentQQGYLab/ELLA (questions after DSG, j-min/DSG)",
    ),
    "wise": Published(
        files=(
            Source("cultural_common_sense.json", f"{_WISE_LEGACY}/cultural_common_sense.json"),
            Source("spatio-temporal_reasoning.json", f"{_WISE_LEGACY}/spatio-temporal_reasoning.json"),
            Source("natural_science.json", f"{_WISE_LEGACY}/natural_science.json"),
        ),
        licence="none stated by PKU-YuanGroup/WISE: for your own use only, do not pass on",
    ),
    "imgedit": Published(
        files=(Source("Benchmark.tar", "https://huggingface.co/datasets/sysuyy/ImgEdit/resolve/main/Benchmark.tar"),),
        licence="none stated by PKU-YuanGroup/ImgEdit; the photographs keep their own rights: do not pass on",
    ),
    "gedit": Published(
        dataset="stepfun-ai/GEdit-Bench@50766778e2a737474c7e9bdf84cdce82c3ea3f4f",
        licence="MIT by its card, stepfun-ai/GEdit-Bench",
    ),
}
"""The whole table. WISE's *verified* version has no address here: put its three files where a message asks for them."""


def folder_of(root: Path, name: str) -> Path:
    """Where a benchmark's files lie."""
    return root / FOLDER / name


def checked(root: Path, name: str) -> Path:
    """The folder of a benchmark whose files are there and are the published ones.

    Raises:
        UserError: A file is missing or another one; the message says where it comes from.
    """
    folder, published = folder_of(root, name), SOURCES[name]
    recorded = read_record(folder)
    for source in published.files:
        path = folder / source.file
        if not path.is_file():
            raise UserError(_missing(path, source.url))
        wanted = source.sha256 or recorded.get(source.file, {}).get("sha256")
        if wanted and (found := file_digest(path)) != wanted:
            raise UserError(
                f"{path} is not the published file (SHA-256 {found}, not {wanted}); delete it and fetch anew"
            )
    if published.dataset and not data_files(folder):
        repository = published.dataset.partition("@")[0]
        raise UserError(_missing(folder, f"https://huggingface.co/datasets/{repository}"))
    for file, facts in recorded.items():
        path = folder / file
        if not path.is_file() or file_digest(path) != facts["sha256"]:
            raise UserError(f"{path} is not what was fetched ({facts['url']}); delete {folder} and fetch it anew")
    return folder


def _missing(path: Path, url: str) -> str:
    return (
        f"{path} is missing. `reca compose` and `reca evaluate` fetch it when there is a network; without one, bring "
        f"it from {url}"
    )


def data_files(folder: Path) -> list[Path]:
    """Parquet and Arrow files of a data set, in order."""
    return sorted([*folder.rglob("*.parquet"), *folder.rglob("*.arrow")]) if folder.is_dir() else []


def read_record(folder: Path) -> dict[str, dict[str, str]]:
    """What was fetched into a folder; nothing where its files were put there by hand.

    Raises:
        UserError: The record is damaged.
    """
    path = folder / RECORD
    if not path.is_file():
        return {}
    try:
        return {str(file): dict(facts) for file, facts in json.loads(path.read_text()).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error}); delete {folder} and fetch it anew") from None
