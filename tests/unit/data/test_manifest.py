"""The data set on disk: shards, manifest, and what is said when one of them is damaged."""

import random
import tarfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reca.config import WebDatasetData
from reca.data import shards as shards_module
from reca.data.manifest import (
    ImageReader,
    assign_split,
    ensure_one_held_out,
    load_images,
    read_manifest,
    write_manifest,
)
from reca.data.shards import ShardWriter
from reca.data.sources.base import Item
from reca.data.sources.webdataset import WebDatasetSource
from reca.data.spool import DecodedImage, TempImageStore
from reca.runtime.errors import UserError
from tests.unit.data.pictures import encoded, picture, png

HASHES = st.lists(st.binary(min_size=32, max_size=32).map(bytes.hex), min_size=1, max_size=50, unique=True)


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ten images in four shards."""
    monkeypatch.setattr(shards_module, "IMAGES_PER_SHARD", 3)
    rows = []
    with ShardWriter(tmp_path) as writer:
        for seed in range(10):
            place = writer.add(f"{seed:016x}", "png", png(seed), {"metadata": {"seed": seed}})
            row = {"id": f"{seed:016x}", "sha256": f"{seed:064x}", "split": "held_out" if seed % 4 == 3 else "train"}
            row |= {"shard": place.shard, "file": place.file, "offset": place.offset, "length": place.length}
            rows.append(row)
    write_manifest(tmp_path, rows)
    return tmp_path


def seeds(images: Iterable[tuple[str, object]]) -> list[int]:
    return [int(key, 16) for key, _ in images]


def test_shards_are_plain_tars_without_times(dataset: Path) -> None:
    names = [f"shard-0000{number}.tar" for number in range(4)]
    assert sorted(path.name for path in dataset.glob("*.tar")) == names
    with tarfile.open(dataset / names[3]) as tar:
        members = tar.getmembers()
    assert [member.name for member in members] == [f"{9:016x}.png", f"{9:016x}.json"]
    assert {(member.mtime, member.uid, member.gid, member.mode) for member in members} == {(0, 0, 0, 0o644)}


def test_images_by_split_and_by_id_in_any_order(dataset: Path) -> None:
    assert seeds(load_images(dataset)) == list(range(10))
    assert seeds(load_images(dataset, split="held_out")) == [3, 7]
    wanted = [f"{seed:016x}" for seed in (9, 0, 4, 0)]
    assert seeds(load_images(dataset, wanted)) == [9, 0, 4, 0]
    for key, image in load_images(dataset, wanted):
        assert image.tobytes() == picture(seed=int(key, 16)).tobytes()


def test_few_shards_stay_open(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reca.data.manifest.OPEN_SHARDS", 2)
    with ImageReader(dataset) as reader:
        keys = reader.ids()
        random.Random(0).shuffle(keys)
        for key in keys * 3:
            assert reader.load(key).tobytes() == picture(seed=int(key, 16)).tobytes()
            assert len(reader._open) <= 2


def test_threads_do_not_disturb_one_another(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reca.data.manifest.OPEN_SHARDS", 1)  # each closes what another reads
    before = open_files()
    with ImageReader(dataset) as reader, ThreadPoolExecutor(8) as pool:
        keys = random.Random(0).choices(reader.ids(), k=400)
        for key, image in zip(keys, pool.map(reader.load, keys), strict=True):
            assert image.tobytes() == picture(seed=int(key, 16)).tobytes()
    assert open_files() == before


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_shards_can_be_read_as_a_webdataset(dataset: Path) -> None:
    data = WebDatasetData(
        source="webdataset",
        path="recipe",
        urls="shard-*.tar",
        held_out_fraction=0.1,
        max_bad_fraction=0,
        max_pixels=10**6,
        min_side=1,
    )
    items = [item for item in WebDatasetSource(data, dataset, 10**6) if isinstance(item, Item)]
    assert [item.data for item in items] == [png(seed) for seed in range(10)]
    assert [item.description.ground_truth for item in items] == [{"metadata": {"seed": seed}} for seed in range(10)]


def test_damage_names_the_file_and_the_way_out(dataset: Path) -> None:
    shard = dataset / "shard-00002.tar"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:600])
    with pytest.raises(UserError, match=r"shard-00002\.tar is damaged at 0000000000000006\.png .*run `reca ingest`"):
        list(load_images(dataset))
    shard.write_bytes(whole.replace(b"IDAT", b"XXXX"))
    with pytest.raises(UserError, match=r"shard-00002\.tar is damaged"):
        list(load_images(dataset))
    shard.unlink()
    with pytest.raises(UserError, match=r"shard-00002\.tar is missing; restore it"):
        list(load_images(dataset))
    manifest = dataset / "manifest.parquet"
    manifest.write_bytes(manifest.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"manifest\.parquet cannot be read"):
        read_manifest(dataset)
    manifest.unlink()
    with pytest.raises(UserError, match=r"manifest\.parquet is missing.*run `reca ingest`"):
        read_manifest(dataset)


@given(HASHES, st.floats(0, 1), st.floats(0, 1))
def test_a_larger_share_only_adds_to_what_is_held_out(hashes: list[str], one: float, other: float) -> None:
    small, large = sorted((one, other))
    few, many = ({h for h in hashes if assign_split(h, share) == "held_out"} for share in (small, large))
    assert few <= many
    assert all(assign_split(h, 0.0) == "train" and assign_split(h, 1.0) == "held_out" for h in hashes)


def test_the_smallest_hashes_are_split_like_all_others() -> None:
    # data.num_images keeps the images with the smallest hashes: a split by the hash itself would hold all of them out
    rng = random.Random(0)
    hashes = sorted(rng.randbytes(32).hex() for _ in range(20_000))[:2000]
    held_out = sum(assign_split(h, 0.1) == "held_out" for h in hashes)
    assert 140 < held_out < 260  # 200 expected, standard deviation 13


PICTURES = [
    DecodedImage.from_item(Item(f"{seed}-{kind}", encoded(picture(20, 20, seed), kind)), 10**6, 1)
    for seed in range(4)
    for kind in ("PNG", "TIFF", "BMP")
] + [DecodedImage.from_item(Item("copy", encoded(picture(20, 20, 0), "PNG")), 10**6, 1)]


@given(st.permutations(PICTURES))
def test_the_order_of_arrival_never_matters(
    tmp_path_factory: pytest.TempPathFactory, order: list[DecodedImage]
) -> None:
    folder = tmp_path_factory.getbasetemp()

    def kept(pictures: list[DecodedImage]) -> tuple[int, list[tuple[str, str, bytes]]]:
        store = TempImageStore(folder)
        for one in pictures:
            store.add(one)
        return store.duplicates, [(one.source, one.sha256, stored) for one, stored in store.images()]

    assert kept(order) == kept(PICTURES)
    assert kept(order)[0] == 9


@given(HASHES)
def test_few_images_hold_one_back(hashes: list[str]) -> None:
    """So that there is something to measure; where chance held some back already, nothing moves."""
    for fraction in (0.0, 0.3):
        rows = [{"sha256": sha, "split": assign_split(sha, fraction)} for sha in hashes]
        before = [row["split"] for row in rows]
        ensure_one_held_out(rows)
        held_out = [row["split"] for row in rows].count("held_out")
        assert held_out == max(before.count("held_out"), min(1, len(hashes) - 1))
        assert "held_out" not in before or before == [row["split"] for row in rows]
