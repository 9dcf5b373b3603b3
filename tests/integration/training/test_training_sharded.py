"""Sharded training equals replicated training for every family, and resumes on any number of ranks."""

import json
import os
import shutil
import signal
from importlib import import_module
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from reca.config import Config, compose
from reca.stages.extract import extract
from reca.stages.train import train
from reca.training.loader import TrainingData
from tests.integration.training.conftest import SMALL, TrainingProject
from tests.integration.training.ranks import ranks

pytestmark = pytest.mark.slow

PRESETS = ("openuni_tiny", "showo_tiny", "bagel_tiny", "harmon_tiny")
UNEVEN = ("train.global_batch_size=6", "hardware.micro_batch_size=1")
"""Three samples a loss: one of two ranks pads with a micro-batch that does not count."""
SHARDED = "hardware.shard=all"
FLOAT32 = 1e-5
"""Relative tolerance of losses and norms: the unit roundoff of float32 (2^-24 = 6.0e-8) times 168, the root of 28,000
summed terms, whose rounding errors are random; 2.7e-7 was measured."""


def _train(root: Path, last: int = 0) -> None:
    """Run the stage, stopped in the middle of step ``last``."""
    original = TrainingData.step

    def step(self: TrainingData, number: int):
        if number == last:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, number)

    TrainingData.step = step
    try:
        train(Config.load(root / "params.yaml"), root)
    finally:
        TrainingData.step = original


def drop_activations(base: Path) -> None:
    """Give a Harmon the dropout of the published ones."""
    config = json.loads((base / "config.json").read_text()) if (base / "config.json").is_file() else {}
    if "mar" in config:
        config["mar"] |= {"attn_dropout": 0.1, "proj_dropout": 0.1}
        (base / "config.json").write_text(json.dumps(config))


def copied(project: TrainingProject, root: Path) -> TrainingProject:
    shutil.copytree(project.root, root)
    return TrainingProject(root, project.config)


def weights(project: TrainingProject) -> dict[str, torch.Tensor]:
    files = sorted((project.root / "outputs/model").rglob("*.safetensors"))
    return {f"{file.name}/{name}": value for file in files for name, value in load_file(file).items()}


def assert_same_curves(result: TrainingProject, expected: TrainingProject, tolerance: float) -> None:
    for name in ("train.csv", "held_out.csv"):
        rows = zip(result.curve(name), expected.curve(name), strict=True)
        for row, other in rows:
            cells = {key: float(cell or 0) for key, cell in other.items()}
            assert {key: float(cell or 0) for key, cell in row.items()} == pytest.approx(cells, rel=tolerance)


def assert_same(result: TrainingProject, expected: TrainingProject) -> None:
    """Equal up to rounding; Adam makes whole steps of gradients that are only rounding."""
    assert_same_curves(result, expected, FLOAT32)
    weights_here, expected_weights = weights(result), weights(expected)
    assert weights_here.keys() == expected_weights.keys()
    rate = result.config.train.learning_rate
    for name, value in weights_here.items():
        assert torch.allclose(value, expected_weights[name], rtol=1e-3, atol=rate / 10), name


def assert_equal(result: TrainingProject, expected: TrainingProject) -> None:
    assert result.curve("train.csv") == expected.curve("train.csv")
    expected_weights = weights(expected)
    assert all(torch.equal(value, expected_weights[name]) for name, value in weights(result).items())


def parts(project: TrainingProject, step: int) -> list[str]:
    """The files of a checkpoint, which are those that its meta.json names."""
    folder = project.checkpoints / f"{step:06d}"
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    assert sorted(json.loads((folder / "meta.json").read_text())["files"]) == names
    return names


@pytest.mark.parametrize("preset", PRESETS)
def test_sharded_training_equals_replicated_for_every_family(preset: str, template: Path, tmp_path: Path) -> None:
    """Recompute activations; dropout of prompts and of Harmon's activations differs between ranks."""
    replicated = TrainingProject(tmp_path / "whole", compose())
    shutil.copytree(template / "outputs/dataset", replicated.root / "outputs/dataset")
    switches = ("train.max_steps=2", "model.prompt_dropout=0.5", "hardware.gradient_checkpointing=true")
    config = compose([f"model={preset}", *SMALL, *UNEVEN, *switches])
    torch.manual_seed(0)
    import_module(f"tools.tiny_bases.{preset}").build().save_official(replicated.root / "base")
    drop_activations(replicated.root / "base")
    (replicated.root / "params.yaml").write_text(config.to_yaml())
    extract(config, replicated.root)
    sharded = copied(replicated, tmp_path / "sharded")
    (sharded.root / "params.yaml").write_text(
        compose([f"model={preset}", *SMALL, *UNEVEN, *switches, SHARDED]).to_yaml()
    )
    _train(replicated.root)
    assert ranks(2, _train, sharded.root) == [0, 0]
    assert_same(sharded, replicated)
    assert parts(sharded, 2) == [
        "shard-00001-model-00001-of-00001.safetensors",
        "shard-00002-model-00001-of-00001.safetensors",
    ]


@pytest.fixture(scope="module")
def replicated(template: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainingProject:
    """Janus on one process, and its own vision tower in training too."""
    root = tmp_path_factory.mktemp("whole") / "project"
    shutil.copytree(template, root)
    project = TrainingProject(root, compose())
    project.configure(*UNEVEN, "train.max_steps=4", "model.train_vision=true", "train.save_every=2")
    extract(project.config, root)
    _train(root)
    return project


def sharded(project: TrainingProject) -> None:
    values = project.config.to_dict()
    values["hardware"]["shard"] = "all"
    (project.root / "params.yaml").write_text(Config.model_validate(values).to_yaml())


def test_sharded_run_resumes_on_other_world_sizes(replicated: TrainingProject, tmp_path: Path) -> None:
    straight = copied(replicated, tmp_path / "straight")
    shutil.rmtree(straight.root / ".reca")
    sharded(straight)
    resumed = copied(straight, tmp_path / "resumed")
    assert ranks(2, _train, straight.root) == [0, 0]
    assert_same(straight, replicated)
    assert ranks(2, _train, resumed.root, 2) == [128 + signal.SIGTERM] * 2
    assert resumed.steps() == ["000002"]
    on_four, on_one = copied(resumed, tmp_path / "on four"), copied(resumed, tmp_path / "on one")
    assert ranks(2, _train, resumed.root) == [0, 0]
    assert_equal(resumed, straight)
    assert ranks(4, _train, on_four.root) == [0] * 4
    assert_same(on_four, replicated)
    assert len(parts(on_four, 4)) == 4
    _train(on_one.root)
    assert_same(on_one, replicated)
    assert len(parts(on_one, 4)) == 1


def test_replicated_run_resumes_sharded(replicated: TrainingProject, tmp_path: Path) -> None:
    begun = copied(replicated, tmp_path / "begun")
    shutil.rmtree(begun.checkpoints / "000004")
    sharded(begun)
    assert ranks(2, _train, begun.root) == [0, 0]
    assert_same(begun, replicated)


def test_sharding_in_bfloat16_changes_losses_by_rounding_only(template: Path, tmp_path: Path) -> None:
    """Replicated parameters on equally many ranks are the reference: every bfloat16 product of step 1 is the same.

    One process is not: its weight gradients sum twice as many samples before the product rounds them to
    bfloat16 (unit roundoff 2^-9 = 2.0e-3), and its gradient norm differs by 1.1e-3 to 3.4e-3, depending on the CPU.
    """
    replicated_run = TrainingProject(tmp_path / "replicated", compose())
    shutil.copytree(template, replicated_run.root)
    replicated_run.configure("train.max_steps=2", "train.precision=bfloat16", "hardware.gradient_checkpointing=true")
    sharded_run = copied(replicated_run, tmp_path / "sharded")
    sharded(sharded_run)
    assert ranks(2, _train, replicated_run.root) == [0, 0]
    assert ranks(2, _train, sharded_run.root) == [0, 0]
    for name in ("train.csv", "held_out.csv"):  # before any update
        first, expected = (
            {key: float(cell or 0) for key, cell in project.curve(name)[0].items()}
            for project in (sharded_run, replicated_run)
        )
        assert first == pytest.approx(expected, rel=FLOAT32)
    # Adam's first update is +-learning_rate even for gradients that cancel up to the order of their float32 sums, so
    # some weights of step 2 differ by whole updates, and their products by some roundings to bfloat16.
    assert_same_curves(sharded_run, replicated_run, 4 * 2**-9)
