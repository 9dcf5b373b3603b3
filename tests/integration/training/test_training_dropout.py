"""Dropout and all other noise do not depend on micro-batch size and world size."""

import shutil
from pathlib import Path

import pytest
import torch

from reca.config import Config, compose
from reca.stages.extract import extract
from reca.stages.train import train
from tests.integration.training.conftest import SMALL, TrainingProject
from tests.integration.training.ranks import ranks
from tests.integration.training.test_training_sharded import assert_same_curves, drop_activations
from tools.tiny_bases.harmon_tiny import build

pytestmark = pytest.mark.slow

WORDS = (
    "model=harmon_tiny",
    *SMALL,
    "model.prompt_dropout=0.5",
    "train.max_steps=1",
    "train.warmup_steps=1",
    "train.global_batch_size=12",  # four per loss
    "train.mixture={reconstruction: 1, text_to_image: 1, understanding: 1}",
    "hardware.micro_batch_size=4",
)


def _train(root: Path) -> None:
    train(Config.load(root / "params.yaml"), root)


@pytest.fixture(scope="module")
def whole(template: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainingProject:
    """A Harmon with the published dropout, trained four at a time on one process."""
    project = TrainingProject(tmp_path_factory.mktemp("whole") / "project", compose(WORDS))
    shutil.copytree(template / "outputs/dataset", project.root / "outputs/dataset")
    (project.root / "params.yaml").write_text(project.config.to_yaml())
    torch.manual_seed(0)
    build().save_official(project.root / "base")
    drop_activations(project.root / "base")
    extract(project.config, project.root)
    _train(project.root)
    return project


def again(project: TrainingProject, root: Path, *overrides: str) -> TrainingProject:
    shutil.copytree(project.root, root, ignore=shutil.ignore_patterns(".reca", "curves", "model"))
    config = compose([*WORDS, *overrides])
    (root / "params.yaml").write_text(config.to_yaml())
    return TrainingProject(root, config)


def test_micro_batches_of_one_equal_one_batch_of_four(whole: TrainingProject, tmp_path: Path) -> None:
    single = again(whole, tmp_path / "single", "hardware.micro_batch_size=1")
    _train(single.root)
    assert_same_curves(single, whole, 1e-5)


@pytest.mark.parametrize("size", [2, 4])
def test_dropout_curves_do_not_depend_on_world_size(whole: TrainingProject, tmp_path: Path, size: int) -> None:
    on_ranks = again(whole, tmp_path / "several", "hardware.gradient_checkpointing=true")
    assert ranks(size, _train, on_ranks.root) == [0] * size
    assert_same_curves(on_ranks, whole, 1e-5)


def test_dropout_changes_the_curve(whole: TrainingProject, tmp_path: Path) -> None:
    plain = again(whole, tmp_path / "plain")
    torch.manual_seed(0)
    build().save_official(plain.root / "base")
    _train(plain.root)
    assert plain.curve("held_out.csv")[0] == whole.curve("held_out.csv")[0]
    with pytest.raises(AssertionError):
        assert_same_curves(plain, whole, 1e-3)
