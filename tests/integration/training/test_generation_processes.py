"""Any number of workers makes the samples that one makes, and a killed generation costs its unfinished batch."""

import os
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from reca.config import ROOT, Config, compose
from reca.evaluation.benchmark import Benchmark
from reca.evaluation.samples import Row
from reca.models.base import UnifiedModel
from reca.stages import generate as stage
from tests.fan_outs import one_worker_per_item
from tests.integration.training.ranks import ranks
from tools.tiny_bases.janus_tiny import build

pytestmark = pytest.mark.slow

SMALL = (
    "model.checkpoint=base",
    "evaluate.benchmarks=[scenes,fidelity]",
    "evaluate.scenes.prompts_per_category=2",
    "evaluate.scenes.images_per_prompt=1",
    "evaluate.fidelity.num_images=5",
    "evaluate.bootstrap_resamples=100",
    "hardware.generate_batch_size=2",
)
SCENES = "outputs/samples/base/scenes"


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a randomly initialised Janus, and its samples made by one process."""
    root = tmp_path_factory.mktemp("alone")
    config = compose(SMALL)
    (root / "params.yaml").write_text(config.to_yaml())
    (root / "dvc.yaml").write_text("stages: {}\n")
    shutil.copytree(ROOT / "data/bases/scene_detector", root / "data/bases/scene_detector")
    torch.manual_seed(7)
    build().save_official(root / "base")
    for benchmark in config.evaluate.benchmarks:
        stage.generate(config, root, "base", benchmark)
    return root


@pytest.fixture
def made_nowhere(alone: Path, tmp_path: Path) -> Path:
    """The same project without samples."""
    root = tmp_path / "project"
    shutil.copytree(alone, root, ignore=shutil.ignore_patterns("samples"))
    return root


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "result.json")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize("benchmark", ["scenes", "fidelity"])
def test_samples_are_byte_equal_for_any_number_of_workers(
    alone: Path, made_nowhere: Path, benchmark: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "fan_out", one_worker_per_item)
    stage.generate(Config.load(made_nowhere / "params.yaml"), made_nowhere, "base", benchmark)
    folder = f"outputs/samples/base/{benchmark}"
    assert contents(made_nowhere / folder) == contents(alone / folder)
    assert not list((made_nowhere / ".reca/samples/base" / benchmark).iterdir())


def test_a_killed_generation_costs_its_batch(alone: Path, made_nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ranks(1, _kill_in_the_third_batch, made_nowhere) == [-signal.SIGKILL]
    (state,) = (made_nowhere / ".reca/samples/base/scenes").iterdir()
    assert len(list(state.glob("part-*.json"))) == 2
    assert not (made_nowhere / SCENES).exists()
    damaged = sorted(state.glob("*.png"))[0]
    damaged.write_bytes(damaged.read_bytes()[:-1])  # and the disk lost the end of a sample: its batch is made again
    made, original = list[str](), stage.make_batch

    def make(bench: Benchmark, model: UnifiedModel, batch: Sequence[Row], config: Config, state: Path) -> list[Row]:
        made.extend(row["file"] for row in batch)
        return original(bench, model, batch, config, state)

    monkeypatch.setattr(stage, "make_batch", make)
    stage.generate(Config.load(made_nowhere / "params.yaml"), made_nowhere, "base", "scenes")
    rows = (made_nowhere / SCENES / "manifest.jsonl").read_text().count("\n")
    assert len(made) == rows - 2 - 1, "all but one whole batch and the intact half of the other"
    assert contents(made_nowhere / SCENES) == contents(alone / SCENES)


def _kill_in_the_third_batch(root: Path) -> None:
    original, batches = stage.make_batch, list[bool]()

    def make(*arguments: Any) -> list[Row]:
        if len(batches) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        batches.append(True)
        return original(*arguments)

    stage.make_batch = make
    stage.generate(Config.load(root / "params.yaml"), root, "base", "scenes")
