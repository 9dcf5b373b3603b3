"""The hub source with the real ``datasets`` library, on local data sets."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reca.config import Config, HubData
from reca.data.manifest import read_manifest
from reca.data.sources.base import Item, Rejected
from reca.data.sources.hub import HubSource
from reca.runtime.errors import UserError
from reca.stages.ingest import ingest
from tests.unit.data.pictures import photographs, png

IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})
pytestmark = pytest.mark.usefixtures("temporary_cache")


@pytest.fixture
def temporary_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the library's cache out of the home folder and the library off the network."""
    import datasets

    for name in ("HF_DATASETS_CACHE", "HF_CACHE_HOME", "DOWNLOADED_DATASETS_PATH", "EXTRACTED_DATASETS_PATH"):
        if hasattr(datasets.config, name):
            monkeypatch.setattr(datasets.config, name, tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def section(dataset: str, **changes: Any) -> HubData:
    values = {"max_pixels": 10**7, "min_side": 1, "held_out_fraction": 0.0, "max_bad_fraction": 0.0}
    return HubData(source="hub", path="recipe", dataset=dataset, **(values | changes))


def images(rows: list[tuple[bytes | None, str | None]]) -> pa.Array:
    return pa.array([{"bytes": data, "path": path} for data, path in rows], IMAGE)


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    """Write a folder in the hub's layout: one Parquet file per split, images as ``datasets`` writes them."""
    originals = [path.read_bytes() for path in photographs()[:3]]
    table = pa.table(
        {"image": images([(data, None) for data in [*originals, png(1)]]), "words": ["one", "two", "", None]}
    )
    features = b'{"info": {"features": {"image": {"_type": "Image"}, "words": {"dtype": "string", "_type": "Value"}}}}'
    (tmp_path / "set").mkdir()
    pq.write_table(table.replace_schema_metadata({b"huggingface": features}), tmp_path / "set" / "train-0.parquet")
    return tmp_path


def test_local_data_set_is_ingested(parquet: Path, default_config: Config) -> None:
    data = section("set", caption_column="words")
    ingest(default_config.model_copy(update={"data": data}), parquet)
    rows = {row["source"]: row for row in read_manifest(parquet / "outputs" / "dataset").to_pylist()}
    assert sorted(rows) == ["train/0", "train/1", "train/2", "train/3"]
    assert [rows[f"train/{number}"]["caption"] for number in range(4)] == ["one", "two", None, None]
    assert (rows["train/0"]["width"], rows["train/3"]["width"]) == (512, 48)


def test_num_images_stops_the_stream(parquet: Path, default_config: Config) -> None:
    ingest(default_config.model_copy(update={"data": section("set", num_images=2)}), parquet)
    assert read_manifest(parquet / "outputs" / "dataset")["source"].to_pylist() in (
        ["train/0", "train/1"],
        ["train/1", "train/0"],
    )


def test_parquet_file_with_plain_bytes_is_read(tmp_path: Path) -> None:
    pq.write_table(pa.table({"pixels": [png(1), png(2), None]}), tmp_path / "plain.parquet")
    entries = list(HubSource(section("plain.parquet", image_column="pixels"), tmp_path, 10**6))
    assert [entry.data for entry in entries if isinstance(entry, Item)] == [png(1), png(2)]
    assert [(entry.source, entry.reason) for entry in entries if isinstance(entry, Rejected)] == [("train/2", "empty")]


def test_folder_of_image_files_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "set" / "train"
    folder.mkdir(parents=True)
    for seed in range(3):
        (folder / f"{seed}.png").write_bytes(png(seed))
    entries = list(HubSource(section("set"), tmp_path, 10**6))
    assert [entry.data for entry in entries if isinstance(entry, Item)] == [png(0), png(1), png(2)]


def test_a_row_cannot_name_a_file_outside_the_data_set(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(png(1))
    (tmp_path / "set").mkdir()
    paths = [str(tmp_path / "secret.png"), f"{tmp_path}/set/../secret.png", "http://127.0.0.1:9/a.png"]
    column = images([(None, path) for path in paths])
    pq.write_table(pa.table({"image": column}), tmp_path / "set" / "train.parquet")
    entries = list(HubSource(section("set"), tmp_path, 10**6))
    assert [entry.reason for entry in entries if isinstance(entry, Rejected)] == ["unreadable"] * 3


def test_missing_columns_and_splits_are_errors(parquet: Path) -> None:
    with pytest.raises(UserError, match=r"data\.image_column='picture' is not a column of set; it has: image, words"):
        HubSource(section("set", image_column="picture"), parquet, 1)
    with pytest.raises(UserError, match=r"data\.caption_column='text' is not a column"):
        HubSource(section("set", caption_column="text"), parquet, 1)
    with pytest.raises(UserError, match=r"cannot open data\.dataset='set', split 'test'"):
        HubSource(section("set", split="test"), parquet, 1)


@pytest.mark.parametrize("revision", [None, "main", "v1.0", "abc123"])
def test_a_hub_id_needs_a_pinned_revision(revision: str | None, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"it needs data\.revision: the full commit \(40 hex digits"):
        HubSource(section("someone/pictures", revision=revision), tmp_path, 1)


def test_unreachable_hub_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot open data\.dataset='someone/pictures', split 'train': \w+"):
        HubSource(section("someone/pictures", revision="0" * 40), tmp_path, 1)
