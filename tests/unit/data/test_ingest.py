"""The stage ``ingest``: one data set from any source, whose bytes depend on the images alone."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reca.config import Config, FolderData, ScenesData
from reca.data.images import decode, load_images
from reca.data.manifest import read_manifest
from reca.data.synthetic.scenes import Scene, Shape, render
from reca.runtime.errors import UserError
from reca.runtime.files import write_text
from reca.stages.ingest import ingest
from tests.unit.data.conftest import FolderOf
from tests.unit.data.pictures import encoded, photographs, picture, png

Ingested = Callable[..., Path]


@pytest.fixture
def ingested(default_config: Config, tmp_path: Path) -> Ingested:
    """Return a function that ingests a folder with changed keys of ``data`` and returns the data set's folder."""

    def run(folder: Path, project: str = "project", threads: int = 2, **changes: Any) -> Path:
        values = {"num_images": None, "held_out_fraction": 0.2, "max_bad_fraction": 0.0, "min_side": 16}
        data = FolderData(source="folder", path=str(folder), max_pixels=4_000_000, **(values | changes))
        hardware = default_config.hardware.model_copy(update={"threads": threads})
        config = default_config.model_copy(update={"data": data, "hardware": hardware})
        root = tmp_path / project
        root.mkdir(exist_ok=True)
        ingest(config, root)
        return root / "outputs" / "dataset"

    return run


def files_of(dataset: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in dataset.iterdir()}


def quarantine(path: Path) -> dict[str, str]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert all(row.keys() == {"source", "reason", "detail"} for row in rows)
    return {row["source"]: row["reason"] for row in rows}


def test_scenes_can_be_rendered_again_from_their_ground_truth(default_config: Config, tmp_path: Path) -> None:
    assert isinstance(default_config.data, ScenesData)
    data = default_config.data.model_copy(update={"num_images": 60})
    ingest(default_config.model_copy(update={"data": data}), tmp_path)
    dataset = tmp_path / "outputs" / "dataset"
    rows = {row["id"]: row for row in read_manifest(dataset).to_pylist()}
    assert len(rows) == 60
    assert list(rows) == sorted(rows)
    for key, image in load_images(dataset):
        row, truth = rows[key], json.loads(rows[key]["ground_truth"])
        shapes = tuple(Shape(**shape) for shape in truth["scene"].pop("shapes"))
        assert (render([Scene(shapes, **truth["scene"])])[0] == np.asarray(image)).all()
        assert truth["metadata"]["include"]
        assert {"existence", "count"} <= {question["kind"] for question in truth["questions"]}
        assert row["caption"]
        assert row["full_caption"]
        assert row["sha256"].startswith(key)
        assert (row["width"], row["height"]) == image.size == (24, 24)
        # Pre-training uses seeds 100..199 and benchmarks small ones: training data must not share a scene with them
        assert int(row["source"].split()[1].split("/")[0]) >= 1 << 32


def test_seed_changes_the_scenes(default_config: Config, tmp_path: Path) -> None:
    hashes = []
    for seed in (0, 1):
        assert isinstance(default_config.data, ScenesData)
        data = default_config.data.model_copy(update={"num_images": 30})
        ingest(default_config.model_copy(update={"data": data, "seed": seed}), tmp_path)
        hashes.append(set(read_manifest(tmp_path / "outputs" / "dataset")["sha256"].to_pylist()))
    assert not hashes[0] & hashes[1]


def test_dataset_bytes_depend_on_images_alone(folder_of: FolderOf, ingested: Ingested, tmp_path: Path) -> None:
    files = {f"{seed}.png": png(seed) for seed in range(12)} | {"copy of 3.png": png(3), "a.txt": b"no image"}
    folder = folder_of(files)
    first = files_of(ingested(folder, max_bad_fraction=0.5))
    shutil.rmtree(folder)
    for number, (name, data) in enumerate(sorted(files.items(), reverse=True)):
        folder_of({name: data})
        os.utime(folder / name, (number, number))
    assert files_of(ingested(folder, threads=1, max_bad_fraction=0.5)) == first


def test_adding_images_keeps_splits(folder_of: FolderOf, ingested: Ingested) -> None:
    def splits(count: int) -> dict[str, str]:
        dataset = ingested(folder_of({f"{seed}.png": png(seed) for seed in range(count)}))
        return {row["id"]: row["split"] for row in read_manifest(dataset).to_pylist()}

    before, after = splits(15), splits(40)
    assert set(before.values()) == {"train", "held_out"}
    assert before.items() <= after.items()
    assert len(after) == 40


def test_bad_images_go_to_the_quarantine_with_a_reason(folder_of: FolderOf, ingested: Ingested) -> None:
    photo = encoded(picture(200, 160), "JPEG")
    files = {
        "good.jpg": photo,
        "deep/good.png": png(1),
        "truncated.jpg": photo[: len(photo) // 2],
        "empty.png": b"",
        "text.jpg": b"a text with the suffix of an image, long enough to be read",
        "tiny.png": png(2, width=60, height=10),
        "huge.png": encoded(picture(2001, 2000), "PNG", compress_level=1),
    }
    folder = folder_of(files)
    (folder / "gone.jpg").symlink_to("nowhere")
    dataset = ingested(folder, max_bad_fraction=0.8, held_out_fraction=0.0)
    assert quarantine(dataset / "quarantine.jsonl") == {
        "empty.png": "empty",
        "gone.jpg": "unreadable",
        "huge.png": "too-many-pixels",
        "text.jpg": "not-an-image",
        "tiny.png": "too-small",
        "truncated.jpg": "truncated",
    }
    result = json.loads((dataset / "result.json").read_text())
    assert (result["images"], result["quarantined"], result["reasons"]["too-small"]) == (2, 6, 1)
    assert set(result["params"]) == {"data", "seed"}


def test_too_many_bad_images_stop_the_stage(folder_of: FolderOf, ingested: Ingested, tmp_path: Path) -> None:
    folder = folder_of({f"{seed}.png": png(seed) for seed in range(8)})
    before = files_of(ingested(folder))
    folder_of({"a.jpg": b"", "b.jpg": b"", "c.jpg": b"no image at all"})
    with pytest.raises(UserError) as caught:
        ingested(folder, max_bad_fraction=0.25)
    list_of_bad = tmp_path / "project" / ".reca" / "ingest" / "quarantine.jsonl"
    expected = "3 of 11 images are bad (27.3%; empty 2, not-an-image 1); data.max_bad_fraction allows 25.0%"
    assert expected in str(caught.value)
    assert str(list_of_bad) in str(caught.value)
    assert len(quarantine(list_of_bad)) == 3
    assert files_of(tmp_path / "project" / "outputs" / "dataset") == before  # the earlier data set is untouched
    assert [path.name for path in (tmp_path / "project" / "outputs").iterdir()] == ["dataset"]
    ingested(folder, max_bad_fraction=0.28)


def test_folder_without_images_is_an_error(folder_of: FolderOf, ingested: Ingested) -> None:
    with pytest.raises(UserError, match="holds no image"):
        ingested(folder_of({}))
    with pytest.raises(UserError, match="1 of 1 images are bad"):
        ingested(folder_of({"a.txt": b"x"}), max_bad_fraction=1.0)


def test_holding_out_every_image_is_an_error(folder_of: FolderOf, ingested: Ingested) -> None:
    with pytest.raises(UserError, match="none to train on"):
        ingested(folder_of({"a.png": png(1)}), held_out_fraction=1.0)


def test_duplicates_are_found_by_bytes_and_by_pixels(folder_of: FolderOf, ingested: Ingested) -> None:
    same_picture = [encoded(picture(), "PNG", compress_level=level) for level in (0, 9)]
    same_picture.append(encoded(picture(), "TIFF"))
    assert len(set(same_picture)) == 3
    flat = [encoded(picture(40, 30).resize(size), "PNG") for size in ((40, 30), (30, 40))]  # not the same
    files = {f"{number}": data for number, data in enumerate([*same_picture, *flat, same_picture[0]])}
    dataset = ingested(folder_of(files), held_out_fraction=0.0)
    result = json.loads((dataset / "result.json").read_text())
    assert (result["images"], result["duplicates"]) == (3, 3)


def test_num_images_selects_the_smallest_hashes(folder_of: FolderOf, ingested: Ingested) -> None:
    folder = folder_of({f"{seed}.png": png(seed) for seed in range(12)})
    everything = read_manifest(ingested(folder))["id"].to_pylist()
    assert read_manifest(ingested(folder, num_images=5))["id"].to_pylist() == everything[:5]


def test_photographs_load_as_decoded(ingested: Ingested, folder_of: FolderOf) -> None:
    originals = {path.name: path.read_bytes() for path in photographs()}
    dataset = ingested(folder_of(originals), held_out_fraction=0.0)
    rows = {row["id"]: row for row in read_manifest(dataset).to_pylist()}
    assert {row["source"] for row in rows.values()} == set(originals)
    for key, image in load_images(dataset):
        assert (np.asarray(image) == np.asarray(decode(originals[rows[key]["source"]]))).all()
        assert image.size == (rows[key]["width"], rows[key]["height"])


def test_other_formats_are_stored_losslessly(ingested: Ingested, folder_of: FolderOf) -> None:
    originals = {f"a.{kind.lower()}": encoded(picture(), kind) for kind in ("WEBP", "TIFF", "GIF", "BMP", "JPEG")}
    dataset = ingested(folder_of(originals), held_out_fraction=0.0)
    rows = {row["id"]: row for row in read_manifest(dataset).to_pylist()}
    for key, image in load_images(dataset):
        row = rows[key]
        assert row["file"].endswith(".jpg" if row["source"].endswith("jpeg") else ".png")
        assert (np.asarray(image) == np.asarray(decode(originals[row["source"]]))).all()


def test_full_disk_error_names_the_folder(folder_of: FolderOf, ingested: Ingested, tmp_path: Path) -> None:
    folder = folder_of({f"{seed}.png": png(seed, 200, 200) for seed in range(8)})
    small = tmp_path / "project" / "outputs"
    small.mkdir(parents=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", small], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("only root may mount a small tmpfs")
    try:
        with pytest.raises(UserError, match=f"cannot write {small}/dataset: No space left on device; make room"):
            ingested(folder)
        assert list(small.iterdir()) == []
    finally:
        subprocess.run(["umount", small], check=True)


def test_unwritable_output_is_an_error(folder_of: FolderOf, ingested: Ingested, tmp_path: Path) -> None:
    write_text(tmp_path / "project" / "outputs", "a file in place of the folder")
    with pytest.raises(UserError, match=r"cannot write .*outputs/dataset: File exists"):
        ingested(folder_of({"a.png": png(1)}))
