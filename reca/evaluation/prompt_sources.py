"""Where the prompts of the published benchmarks come from, and whether what lies here is what was published.

None of them is shipped. :mod:`reca.evaluation.download` brings them into ``data/benchmarks/<name>/``. A file of a Git
repository is pinned by its commit, which is a digest of all that the repository held. From the first fetch on, files
are held to the SHA-256 that ``sources.json`` records.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from reca.runtime.errors import UserError
from reca.runtime.hashing import file_digest

FOLDER = Path("data/benchmarks")
RECORD = "sources.json"
"""What was fetched: file -> URL and SHA-256."""
_WISE = "https://github.com/PKU-YuanGroup/WISE", "9391e95552db88efe5bd6fd2582fcec580adbbfd"
_IMGEDIT = "https://github.com/PKU-YuanGroup/ImgEdit", "c14480ac5e7b622e08cd8c46f96624a48eb9ab46"


@dataclass(frozen=True)
class Source:
    """One file of a benchmark."""

    file: str
    """Its name here."""
    url: str
    """Of the file, or of the Git repository that it lies in."""
    commit: str = ""
    """Of that repository."""
    path: str = ""
    """In that repository."""

    @property
    def address(self) -> str:
        """What a person follows to bring the file by hand."""
        return f"{self.url}/blob/{self.commit}/{self.path}" if self.commit else self.url


@dataclass(frozen=True)
class Published:
    """Everything a benchmark needs that is not shipped."""

    files: tuple[Source, ...] = ()
    dataset: str = ""
    """A data set of the hub, ``REPOSITORY@REVISION``, whose Parquet or Arrow files are wanted."""
    licence: str = ""


SOURCES = {
    "dpgbench": Published(
        files=(
            Source(
                "dpg_bench.csv",
                "https://github.com/TencentQQGYLab/ELLA",
                "025f650e9b36b9603d606042635d98da09e870de",
                "dpg_bench/dpg_bench.csv",
            ),
        ),
        licence="Apache-2.0, TencentQQGYLab/ELLA (questions after DSG, j-min/DSG)",
    ),
    "wise": Published(
        files=(
            Source("cultural_common_sense.json", *_WISE, "data/cultural_common_sense.json"),
            Source("spatio-temporal_reasoning.json", *_WISE, "data/spatio-temporal_reasoning.json"),
            Source("natural_science.json", *_WISE, "data/natural_science.json"),
        ),
        licence="none stated by PKU-YuanGroup/WISE: for your own use only, do not pass on",
    ),
    "imgedit": Published(
        files=(
            Source("basic_edit.json", *_IMGEDIT, "Benchmark/Basic/basic_edit.json"),
            Source("Benchmark.tar", "https://huggingface.co/datasets/sysuyy/ImgEdit/resolve/main/Benchmark.tar"),
        ),
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
            raise UserError(_missing(path, source.address))
    if published.dataset and not data_files(folder):
        repository = published.dataset.partition("@")[0]
        raise UserError(_missing(folder, f"https://huggingface.co/datasets/{repository}"))
    for file, facts in recorded.items():
        path = folder / file
        if not path.is_file() or file_digest(path) != facts["sha256"]:
            raise UserError(f"{path} is not what was fetched from {facts['url']}; delete it and fetch it anew")
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
