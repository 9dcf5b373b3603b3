"""The data set on disk: shards, manifest, and errors about damaged files."""

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
from reca.data.images import ImageReader, load_images
from reca.data.manifest import assign_split, ensure_one_held_out, read_manifest, write_manifest
from reca.data.shards import DecodedImage, ShardWriter, TempImageStore
from reca.data.sources.base import Item
from reca.data.sources.webdataset import WebDatasetSource
from reca.runtime.errors import UserError
from tests.unit.data.pictures import encoded, picture, png

HASHES = st.lists(st.binary(min_size=32, max_size=32).map(bytes.hex), min_size=1, max_size=50, unique=True)


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write ten images in four shards."""
    monkeypatch.setattr(shards_module, "IMAGES_PER_SHARD", 3)
    rows = []
    with ShardWriter(tmp_path) as writer:
        for seed in range(10):
            position = writer.add(f"{seed:016x}", "png", png(seed), {"metadata": {"seed": seed}})
            row = {"id": f"{seed:016x}", "sha256": f"{seed:064x}", "split": "held_out" if seed % 4 == 3 else "train"}
            rows.append(row | position)
    write_manifest(tmp_path, rows)
    return tmp_path


def seeds(images: Iterable[tuple[str, object]]) -> list[int]:
    return [int(key, 16) for key, _ in images]


def test_shards_are_plain_tars_without_timestamps(dataset: Path) -> None:
    names = [f"shard-0000{number}.tar" for number in range(4)]
    assert sorted(path.name for path in dataset.glob("*.tar")) == names
    with tarfile.open(dataset / names[3]) as tar:
        members = tar.getmembers()
    assert [member.name for member in members] == [f"{9:016x}.png", f"{9:016x}.json"]
    assert {(member.mtime, member.uid, member.gid, member.mode) for member in members} == {(0, 0, 0, 0o644)}


def test_images_load_by_split_and_by_id_in_any_order(dataset: Path) -> None:
    assert seeds(load_images(dataset)) == list(range(10))
    assert seeds(load_images(dataset, split="held_out")) == [3, 7]
    ids = [f"{seed:016x}" for seed in (9, 0, 4, 0)]
    assert seeds(load_images(dataset, ids)) == [9, 0, 4, 0]
    for key, image in load_images(dataset, ids):
        assert image.tobytes() == picture(seed=int(key, 16)).tobytes()


def test_reader_is_thread_safe_and_leaves_no_file_open(dataset: Path) -> None:
    before, reader = open_files(), ImageReader(dataset)
    with ThreadPoolExecutor(8) as pool:
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


def test_damage_errors_name_the_file_and_the_command(dataset: Path) -> None:
    shard = dataset / "shard-00002.tar"
    original = shard.read_bytes()
    shard.write_bytes(original[:600])
    with pytest.raises(UserError, match=r"shard-00002\.tar is damaged at 0000000000000006\.png .*run `reca ingest`"):
        list(load_images(dataset))
    shard.write_bytes(original.replace(b"IDAT", b"XXXX"))
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
def test_a_larger_fraction_only_adds_held_out_images(hashes: list[str], first: float, second: float) -> None:
    small, large = sorted((first, second))
    few, many = ({h for h in hashes if assign_split(h, share) == "held_out"} for share in (small, large))
    assert few <= many
    assert all(assign_split(h, 0.0) == "train" and assign_split(h, 1.0) == "held_out" for h in hashes)


def test_split_of_the_smallest_hashes_is_unbiased() -> None:
    # data.num_images keeps the images with the smallest hashes: splitting by the hash itself would hold them all out
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
def test_image_store_does_not_depend_on_order(
    tmp_path_factory: pytest.TempPathFactory, order: list[DecodedImage]
) -> None:
    folder = tmp_path_factory.getbasetemp()

    def stored(images: list[DecodedImage]) -> tuple[int, list[tuple[str, str, bytes]]]:
        store = TempImageStore(folder)
        for image in images:
            store.add(image)
        return store.duplicates, [(image.source, image.sha256, data) for image, data in store.images()]

    assert stored(order) == stored(PICTURES)
    assert stored(order)[0] == 9


@given(HASHES)
def test_at_least_one_of_several_images_is_held_out(hashes: list[str]) -> None:
    """Splits with a held-out image stay unchanged."""
    for fraction in (0.0, 0.3):
        rows = [{"sha256": sha, "split": assign_split(sha, fraction)} for sha in hashes]
        before = [row["split"] for row in rows]
        ensure_one_held_out(rows)
        held_out = [row["split"] for row in rows].count("held_out")
        assert held_out == max(before.count("held_out"), min(1, len(hashes) - 1))
        assert "held_out" not in before or before == [row["split"] for row in rows]
