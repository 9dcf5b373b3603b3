"""Photographs of mixed sizes, from a folder to an aligned BAGEL that draws each in its own shape."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from reca.config import Config, compose
from reca.data.embeddings import INDEX, Embeddings
from reca.data.images import load_images
from reca.models.loading import load_model
from reca.runtime.seeding import SampleRng
from reca.stages.extract import extract
from reca.stages.generate import generate
from reca.stages.ingest import ingest
from reca.stages.result import read_result
from reca.stages.score import score
from reca.stages.train import train
from tests.unit.data.pictures import png
from tools.tiny_bases import bagel_tiny

SIZES = ((24, 24), (48, 24), (24, 36), (40, 30), (17, 34))
"""Width and height of the photographs, in turn."""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Config]:
    root = tmp_path_factory.mktemp("shapes")
    (root / "photos").mkdir()
    for seed in range(20):
        (root / f"photos/{seed:02d}.png").write_bytes(png(seed, *SIZES[seed % len(SIZES)]))
    (root / "photos/sliver.png").write_bytes(png(99, 40, 3))
    torch.manual_seed(0)
    bagel_tiny.build().save_official(root / "base")
    config = compose(
        [
            "model=bagel_tiny",
            "data=folder",
            "data.path=photos",
            "data.held_out_fraction=0.5",
            "data.min_side=6",  # a patch of the vision tower
            "model.checkpoint=base",
            "extract.images_per_shard=8",
            "extract.dtype=float32",
            "train.max_steps=1",
            "train.warmup_steps=0",
            "train.global_batch_size=8",
            "generate.num_steps=1",
            "evaluate.benchmarks=[fidelity]",
            "evaluate.fidelity.num_images=4",
            "evaluate.bootstrap_resamples=20",
            "hardware.micro_batch_size=3",
            "hardware.threads=1",
            "register.promotion_rules=[{benchmark: fidelity, versus: base, bound: estimate, minimum: 0.0}]",
        ]
    )
    (root / "params.yaml").write_text(config.to_yaml())
    ingest(config, root)
    extract(config, root)
    return root, config


def test_images_smaller_than_a_patch_are_quarantined(project: tuple[Path, Config]) -> None:
    lines = (project[0] / "outputs/dataset/quarantine.jsonl").read_text().splitlines()
    (entry,) = map(json.loads, lines)
    assert entry["reason"] == "too-small"
    assert "40x3, the shorter side is below 6 pixels" in entry["detail"]


def test_rows_equal_encoding_of_single_images(project: tuple[Path, Config]) -> None:
    root, config = project
    cache = Embeddings.open(root / "outputs/embeddings")
    index = json.loads((root / "outputs/embeddings" / INDEX).read_text())
    assert index["format"] == 2
    assert {name: field.shape for name, field in cache.fields.items()} == {"semantic": None, "target": None}
    model = load_model("bagel", root / "base", config.model.load_options(root), torch.device("cpu"))
    shapes = set()
    for name, image in load_images(root / "outputs/dataset", cache.ids):
        width, height = model.spec.understanding.size(image.height, image.width)[::-1]
        small = image.resize((width, height), Image.Resampling.BICUBIC)
        sizes = model.spec.generation.size(image.height, image.width)
        large = image.resize(sizes[::-1], Image.Resampling.BICUBIC)
        pixels = [
            torch.tensor(list(picture.tobytes())).view(picture.height, picture.width, 3) for picture in (small, large)
        ]
        pixels = [(levels.permute(2, 0, 1).float() / 127.5 - 1)[None] for levels in pixels]
        with torch.no_grad():
            semantic = model.encode_semantic(pixels[0]).embeds[0]
        target = model.encode_target(pixels[1], SampleRng([0])).values[0]
        torch.testing.assert_close(cache.rows("semantic", [name])[0], semantic, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(cache.rows("target", [name])[0], target, atol=1e-4, rtol=1e-4)
        shapes.add((*semantic.shape, *target.shape))
    assert len(shapes) == len(SIZES)


def test_training_and_generation_keep_image_shapes(project: tuple[Path, Config]) -> None:
    root, config = project
    train(config, root)
    assert read_result(root / "outputs/model")["steps"] == 1
    for variant in ("base", "aligned"):
        generate(config, root, variant, "fidelity")
        score(config, root, variant, "fidelity")
        assert not json.loads((root / f"outputs/scores/{variant}/fidelity.json").read_text())["failed"]
    folder = root / "outputs/samples/aligned/fidelity"
    originals = {path.name: Image.open(path).size for path in folder.glob("*_original.png")}
    sizes = {
        f"{path.stem}_original.png": Image.open(path).size for path in folder.glob("*.png") if "_" not in path.stem
    }
    assert originals == sizes
    assert len(set(sizes.values())) > 1
