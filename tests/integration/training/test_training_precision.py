"""Frozen matrices in bfloat16: ``train`` writes the same bytes as without, also interrupted and sharded."""

import os
import shutil
import signal
from importlib import import_module
from pathlib import Path
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file, save_file

from reca.config import Config, compose
from reca.runtime.signals import Interrupted
from reca.stages import train as stage
from reca.stages.extract import extract
from reca.training.loader import TrainingData
from tests.integration.training.conftest import SMALL
from tests.integration.training.ranks import ranks

WORDS = (
    "model=bagel_tiny",
    *SMALL,
    "train.max_steps=2",
    "train.eval_every=2",
    "train.global_batch_size=4",
    "train.precision=bfloat16",
    "hardware.gradient_checkpointing=true",
)
ADAPTERS = "train.adapter={rank: 4, alpha: 8, dropout: 0.1}"


@pytest.fixture(scope="module", params=["train.adapter=null", ADAPTERS], ids=["whole", "adapters"])
def published(request: pytest.FixtureRequest, template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """TrainingProject whose base is stored in bfloat16."""
    root = tmp_path_factory.mktemp("published") / "project"
    shutil.copytree(template / "outputs/dataset", root / "outputs/dataset")
    config = compose([*WORDS, request.param])
    (root / "params.yaml").write_text(config.to_yaml())
    torch.manual_seed(0)
    import_module("tools.tiny_bases.bagel_tiny").build().save_official(root / "base")
    for file in (root / "base").rglob("*.safetensors"):
        save_file({name: value.bfloat16() for name, value in load_file(file).items()}, file)
    extract(config, root)
    return root


def copied(project: Path, root: Path, **hardware: object) -> Path:
    shutil.copytree(project, root)
    values = Config.load(root / "params.yaml").to_dict()
    values["hardware"] |= hardware
    (root / "params.yaml").write_text(Config.model_validate(values).to_yaml())
    return root


def train(root: Path, narrow: bool, last: int = 0) -> None:
    """Run the stage, stopped in the middle of step ``last``, with frozen matrices in bfloat16 or not."""
    types = set()
    begin, step_of = stage.train_model, TrainingData.step

    def train_model(run: stage.Run, *arguments: object) -> stage.TrainState:
        types.update(parameter.dtype for parameter in run.model.parameters())
        return begin(run, *arguments)

    def step(self: TrainingData, number: int) -> object:
        if number == last:
            os.kill(os.getpid(), signal.SIGTERM)
        return step_of(self, number)

    select = stage.bf16_safe_parameters if narrow else lambda _: []
    with (
        mock.patch.object(stage, "bf16_safe_parameters", select),
        mock.patch.object(stage, "train_model", train_model),
        mock.patch.object(TrainingData, "step", step),
    ):
        stage.train(Config.load(root / "params.yaml"), root)
    assert types == ({torch.float32, torch.bfloat16} if narrow else {torch.float32})


def written(root: Path) -> dict[str, object]:
    """The model's files, and the losses of every step."""
    outputs = root / "outputs"
    files = [file for file in (outputs / "model").rglob("*") if file.is_file() and file.name != "result.json"]
    assert len(files) > 5
    steps = [line.rpartition(",")[0] for line in (outputs / "curves/train.csv").read_text().splitlines()]
    held_out = (outputs / "curves/held_out.csv").read_text()
    return {file.name: file.read_bytes() for file in files} | {"steps": steps, "held out": held_out}


def test_bfloat16_storage_is_bit_equal(published: Path, tmp_path: Path) -> None:
    wide, narrow = copied(published, tmp_path / "wide"), copied(published, tmp_path / "narrow")
    train(wide, narrow=False)
    with pytest.raises(Interrupted):
        train(narrow, narrow=True, last=1)
    train(narrow, narrow=True)
    assert written(narrow) == written(wide)


def test_bfloat16_storage_is_bit_equal_with_sharding(published: Path, tmp_path: Path) -> None:
    wide, narrow = (copied(published, tmp_path / name, shard="all") for name in ("wide", "narrow"))
    assert ranks(2, train, wide, False) == [0, 0]
    assert ranks(2, train, narrow, True) == [0, 0]
    assert written(narrow) == written(wide)
