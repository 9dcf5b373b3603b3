"""Several processes make the samples that one makes, and a lost one costs its share."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from reca.config import ROOT, Config, compose
from reca.evaluation.samples import Row
from reca.runtime.signals import LostProcess
from reca.stages import generate as stage
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


def _generate(root: Path, benchmark: str) -> None:
    stage.generate(Config.load(root / "params.yaml"), root, "base", benchmark)


@pytest.mark.parametrize(("benchmark", "size"), [("scenes", 3), ("fidelity", 4)])
def test_samples_are_byte_equal_for_any_world_size(alone: Path, made_nowhere: Path, benchmark: str, size: int) -> None:
    """Five images of fidelity are three batches: the fourth process has none. An evaluation below has two processes."""
    assert ranks(size, _generate, made_nowhere, benchmark) == [0] * size
    folder = f"outputs/samples/base/{benchmark}"
    assert contents(made_nowhere / folder) == contents(alone / folder)
    assert not list((made_nowhere / ".reca/samples/base" / benchmark).iterdir())


def test_a_lost_process_costs_its_share(alone: Path, made_nowhere: Path) -> None:
    assert ranks(2, _lose_the_second, made_nowhere) == [LostProcess.STATUS, -signal.SIGKILL]
    (state,) = (made_nowhere / ".reca/samples/base/scenes").iterdir()
    assert len(list(state.glob("*.png"))) == 2 + 6, "one batch of the lost process, all three of the other"
    assert not (made_nowhere / SCENES).exists()
    assert ranks(3, _generate_and_tell, made_nowhere) == [0] * 3
    output = [path.read_text().split() for path in sorted(made_nowhere.glob("made-*.txt"))]
    assert [len(samples) for samples in output] == [2, 2], "what was finished is not made again"
    assert contents(made_nowhere / SCENES) == contents(alone / SCENES)


def _lose_the_second(root: Path) -> None:
    original, batches = stage.make_batch, []

    def make(*arguments: object) -> None:
        if os.environ["RANK"] == "1" and batches:
            os.kill(os.getpid(), signal.SIGKILL)
        batches.append(True)
        original(*arguments)

    stage.make_batch = make
    _generate(root, "scenes")


def _generate_and_tell(root: Path) -> None:
    original = stage.make_batch

    def make(bench: object, model: object, batch: list[Row], *arguments: object) -> None:
        with (root / f"made-{os.environ['RANK']}.txt").open("a") as file:
            file.writelines(f"{row['file']}\n" for row in batch)
        original(bench, model, batch, *arguments)

    stage.make_batch = make
    _generate(root, "scenes")


def test_evaluate_splits_samples_over_two_processes(alone: Path, made_nowhere: Path) -> None:
    """The real command, which starts the processes itself and scores in the first one alone."""
    words = ("evaluate", *SMALL, "evaluate.benchmarks=[scenes]", "hardware.processes=2", "--output", "measured")
    done = subprocess.run(
        [sys.executable, "-m", "reca", *words],
        cwd=made_nowhere,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    assert contents(made_nowhere / "measured/samples/scenes") == contents(alone / SCENES)
    assert (made_nowhere / "measured/scores/scenes.json").is_file()
    assert done.stdout.count("score evaluated scenes") == 1
