"""Training on several ranks equals training on one, also after a resume on another number of ranks."""

import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

from reca.config import Config
from reca.runtime.distributed import init_distributed
from reca.stages.result import read_result
from reca.stages.train import train
from reca.training.loader import TrainingData
from tests.integration.training.conftest import poisoned
from tests.integration.training.ranks import CHILD_SECONDS, ranks

pytestmark = pytest.mark.slow

SPEED = "images_per_second"


def _stage(stage, root: Path) -> None:
    stage(Config.load(root / "params.yaml"), root)


@pytest.fixture(scope="module")
def alone(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run on one process."""
    root = tmp_path_factory.mktemp("alone") / "project"
    shutil.copytree(template, root)
    train(Config.load(root / "params.yaml"), root)
    return root


def same_curves(alone: Path, project) -> None:
    reference = type(project)(alone, project.config)
    for name in ("train.csv", "held_out.csv"):
        expected, results = reference.curve(name), project.curve(name)
        assert [row["step"] for row in results] == [row["step"] for row in expected]
        for row, other in zip(results, expected, strict=True):
            assert {key: float(cell) for key, cell in row.items()} == pytest.approx(
                {key: float(cell) for key, cell in other.items()}, rel=1e-5
            )


@pytest.mark.parametrize("size", [2, 4])
def test_curves_equal_those_of_one_process(project, alone: Path, size: int) -> None:
    """With four ranks and two dialogues a step, two ranks have no sample of that loss."""
    assert ranks(size, _stage, train, project.root) == [0] * size
    same_curves(alone, project)
    assert project.steps() == ["000006", "000008"]
    expected = type(project)(alone, project.config).weights()
    rate = project.config.train.learning_rate
    for name, value in project.weights().items():  # Adam makes whole steps of gradients that are only rounding
        assert torch.allclose(value, expected[name], rtol=1e-3, atol=rate / 10), name


def test_adapters_are_equal_on_every_rank(project) -> None:
    project.configure("train.adapter={rank: 4, alpha: 8}", "train.max_steps=3")
    single = type(project)(project.root.with_name("one"), project.config)
    shutil.copytree(project.root, single.root)
    train(single.config, single.root)
    assert ranks(2, _stage, train, project.root) == [0, 0]
    same_curves(single.root, project)


def test_run_stopped_on_two_ranks_resumes_on_three_and_one(project, alone: Path) -> None:
    """The real command, stopped as by the flow; resumed on three ranks, then on one."""
    project.configure("hardware.processes=2", "train.save_every=100")
    child = project.start("train")
    project.wait_for(lambda: project.recorded() >= 1, lambda: child.poll() is None)
    os.killpg(child.pid, signal.SIGTERM)
    output, _ = child.communicate(timeout=CHILD_SECONDS)
    assert child.returncode == 143, output
    (saved,) = project.steps()
    assert f"stopped by signal 15; saved as {project.checkpoints / saved}" in output
    assert output.count("stopped by signal") == 1
    assert ranks(3, _train_until, project.root, int(saved) + 1) == [143] * 3
    assert int(project.steps()[-1]) == int(saved) + 1
    train(project.config, project.root)
    same_curves(alone, project)
    assert read_result(project.root / "outputs/curves")["resumed_after"] == [int(saved), int(saved) + 1]


def _train_until(root: Path, last: int) -> None:
    """Train; only the last rank gets SIGTERM, in the middle of a step."""
    original = TrainingData.step

    def step(self: TrainingData, number: int):
        if number == last and os.environ["RANK"] == "2":
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, number)

    TrainingData.step = step
    _stage(train, root)


def test_divergence_on_one_rank_stops_all(project) -> None:
    assert ranks(2, _train_poisoned, project.root) == [1, 1]
    assert project.recorded() == 4
    assert project.steps() == ["000003"]


def _train_poisoned(root: Path) -> None:
    if os.environ["RANK"] == "1":
        TrainingData.read = poisoned(TrainingData.read, step=5)
    _stage(train, root)


def test_all_reduced_gradients_are_bit_equal_on_every_rank(tmp_path: Path) -> None:
    assert ranks(4, _add_up, tmp_path) == [0] * 4
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in range(4)]
    gradients = [torch.randn(1000, generator=torch.Generator().manual_seed(rank)) for rank in range(4)]
    for everywhere, by_the_last, by_none, stop_requested in results:
        assert torch.equal(everywhere, results[0][0])
        assert torch.allclose(everywhere, sum(gradients, torch.zeros(1000)), atol=1e-5)
        assert torch.equal(by_the_last, gradients[3])
        assert by_none is None
        assert stop_requested == [False, True]


def _add_up(folder: Path) -> None:
    with init_distributed(torch.device("cpu")) as distributed:
        everywhere, by_the_last, by_none = (torch.nn.Parameter(torch.zeros(1000)) for _ in range(3))
        gradient = torch.randn(1000, generator=torch.Generator().manual_seed(distributed.rank))
        everywhere.grad = gradient.clone()
        if distributed.rank == 3:
            by_the_last.grad = gradient.clone()
        stop_requested = [distributed.all_reduce_gradients([everywhere, by_the_last, by_none], False)]
        stop_requested.append(distributed.all_reduce_gradients([], distributed.rank == 2))
        torch.save((everywhere.grad, by_the_last.grad, by_none.grad, stop_requested), folder / f"{distributed.rank}.pt")
