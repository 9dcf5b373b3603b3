"""The copy alarm on a case built to collapse: Show-o reads the codes of the very image that it is to draw.

Without CLIP, Show-o's condition is the image's codes, at half its size unless the configuration says otherwise. At the
full size condition and target are the same codes, and L_RecA alone teaches to point from one to the other.

The collapse needs here: images whose codes cannot be guessed from their neighbours (mosaics of random colours),
a tokenizer that distinguishes them (the tiny preset's), a base that draws from text before, four codes to point at
(with 16, reconstruction stops at 0.23 to 0.25 of its start), and 500 steps.
"""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from reca.config import ROOT, Config, compose
from reca.models.showo.model import Showo
from reca.models.weights import read_weights
from reca.stages.extract import extract
from reca.stages.ingest import ingest
from reca.stages.train import train
from reca.training.metrics import COPY_RECONSTRUCTION, COPY_TEXT_TO_IMAGE
from tools.memory.build import build
from tools.memory.sizes import text

SIDE, PATCH = 8, 4
NARROW = {
    "phi": text(8, 64, 2, 2, 2, 128, 128),
    "clip": None,
    "magvit": (32, (32, 32, 64), (1, 1, 1), (32, 32, 64), (1, 1, 1), 10),
    "codes": (SIDE // PATCH) ** 2,
}
RECIPE = (
    "model=showo_tiny",
    "model.checkpoint=base",
    "model.prompt_dropout=0.0",
    "data=folder",
    "data.min_side=8",
    "data.held_out_fraction=0.2",
    "train.global_batch_size=32",
    "train.learning_rate=3e-3",
    "train.lr_schedule=constant",
    "train.warmup_steps=10",
    "train.eval_every=500",
    "train.save_every=500",
    "hardware.threads=1",
)
DRAW = "train.mixture={reconstruction: 0.0, text_to_image: 1.0, understanding: 0.0}"
REBUILD = "train.mixture={reconstruction: 1.0, text_to_image: 0.0, understanding: 0.0}"


def configured(root: Path, understood: int, *overrides: str) -> Config:
    config = compose([*RECIPE, f"data.path={root / 'mosaics'}", f"+model.understanding_size={understood}", *overrides])
    (root / "params.yaml").write_text(config.to_yaml())
    return config


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose base has learnt a little of drawing from text."""
    root = tmp_path_factory.mktemp("collapse")
    (root / "mosaics").mkdir()
    generator = np.random.default_rng(0)
    for number in range(2048):
        tiles = generator.integers(0, 3, (SIDE // PATCH, SIDE // PATCH, 3)) * 127
        mosaic = Image.fromarray(np.kron(tiles, np.ones((PATCH, PATCH, 1))).astype(np.uint8))
        mosaic.save(root / f"mosaics/{number}.png")
        (root / f"mosaics/{number}.txt").write_text("a mosaic")
    config = configured(root, SIDE, DRAW, "train.max_steps=60")
    torch.manual_seed(0)
    model = build("showo", NARROW, config.model.load_options(root), torch.device("cpu"))
    assert isinstance(model, Showo)
    tokenizer = read_weights(ROOT / "data/bases/showo_tiny/magvit")
    model.magvit.load_state_dict(tokenizer, strict=False)
    model.save_official(root / "base")
    for stage in (ingest, extract, train):
        stage(config, root)
    shutil.rmtree(root / "base")
    shutil.copytree(root / "outputs/model", root / "base")
    return root


def held_out(root: Path, understood: int) -> tuple[float, float]:
    """L_RecA alone from the base; returns last / first of held-out reconstruction and text-to-image."""
    config = configured(root, understood, REBUILD, "train.max_steps=500")
    extract(config, root)
    train(config, root)
    with (root / "outputs/curves/held_out.csv").open() as file:
        rows = list(csv.DictReader(file))
    first, last = (
        [float(row[f"{kind}_loss"]) for kind in ("reconstruction", "text_to_image")] for row in (rows[0], rows[-1])
    )
    return last[0] / first[0], last[1] / first[1]


@pytest.mark.slow
def test_copy_alarm_is_raised_when_condition_equals_target(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reconstruction, text_to_image = held_out(base, understood=SIDE)
    assert reconstruction < COPY_RECONSTRUCTION
    assert text_to_image > COPY_TEXT_TO_IMAGE
    assert "WARNING copy alarm: held-out reconstruction fell" in capsys.readouterr().out


@pytest.mark.slow
def test_copy_alarm_is_not_raised_at_half_the_condition_size(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reconstruction, _ = held_out(base, understood=SIDE // 2)
    assert reconstruction > 2 * COPY_RECONSTRUCTION
    assert "copy alarm" not in capsys.readouterr().out
