"""Training on several ranks equals training on one, also after a resume on another number of ranks."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from torch import nn

from reca.config import Config, compose
from reca.models.base import Loss, UnifiedModel
from reca.runtime.distributed import init_distributed
from reca.stages.result import read_result
from reca.stages.train import train
from reca.training.fsdp import shard_model
from reca.training.loader import TrainingData
from reca.training.step import accumulate
from tests.integration.training.conftest import TrainingProject, poisoned
from tests.integration.training.ranks import CHILD_SECONDS, ranks

pytestmark = pytest.mark.slow

STEPS = ("train.max_steps=20", "train.eval_every=10", "train.save_every=18")


def _stage(stage, root: Path) -> None:
    stage(Config.load(root / "params.yaml"), root)


@pytest.fixture(scope="module")
def alone(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run on one process."""
    root = tmp_path_factory.mktemp("alone") / "project"
    shutil.copytree(template, root)
    train(TrainingProject(root, compose()).configure(*STEPS), root)
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


@pytest.mark.parametrize(
    ("shard", "mesh"), [("none", (2, 1)), ("none", (4, 1)), ("all", (1, 2)), ("host", (2, 2))], ids=str
)
def test_curves_equal_those_of_one_process(project, alone: Path, shard: str, mesh: tuple[int, int]) -> None:
    """With four ranks and two dialogues a step, two ranks have no sample of that loss."""
    project.configure(*STEPS, f"hardware.shard={shard}")
    replicas, per_replica = mesh
    size = replicas * per_replica
    assert ranks(size, _stage, train, project.root, hosts=replicas if shard == "host" else 1) == [0] * size
    same_curves(alone, project)
    assert project.steps() == ["000018", "000020"]
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
    project.configure(*STEPS, "hardware.processes=2", "train.save_every=100")
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


def test_two_cpu_ranks_are_two(tmp_path: Path) -> None:
    """accelerate's state takes every CPU process for the only one, unless it is told to use the CPU."""
    assert ranks(2, _use_collectives, tmp_path) == [0, 0]
    results = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert [result.pop("rank") for result in results] == [0, 1]
    assert [result.pop("share") for result in results] == [["a", "c"], ["b"]]
    shared = {"world_size": 2, "sum": [1.0, 2.5], "broadcast": "from 0", "all_gather": {"0": [0], "1": [1]}}
    assert results == [shared, shared]


def _use_collectives(folder: Path) -> None:
    with init_distributed(torch.device("cpu")) as distributed:
        rank = distributed.rank
        assert distributed.is_main_process == (rank == 0)
        assert torch.get_num_threads() == 1
        result = {"rank": rank, "world_size": distributed.world_size, "share": distributed.shard(["a", "b", "c"])}
        result |= {"sum": distributed.all_reduce_sum([rank, 1.25]), "broadcast": distributed.broadcast(f"from {rank}")}
        result["all_gather"] = distributed.all_gather({str(rank): [rank]})
        distributed.barrier()
        (folder / f"{rank}.json").write_text(json.dumps(result))


class TwoMethods(UnifiedModel):
    """Parameters of a block, outside it, of an encoder that trains, and one that no loss reads."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stack = nn.ModuleList([nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 6))])
        self.scale, self.unread = nn.Parameter(torch.randn(6)), nn.Parameter(torch.ones(5))
        self.encoder = nn.Parameter(torch.randn(8))

    def encode_semantic(self, values: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return values * self.encoder

    def reconstruction_loss(self, values: torch.Tensor) -> Loss:  # type: ignore[override]
        return Loss((self.stack[0](values) * self.scale).square().mean(), len(values))


TwoMethods.__abstractmethods__ = frozenset()  # type: ignore[attr-defined]
TARGETS = [[3, 1, 2], [2, 5, 0], [1, 1, 1], [4, 2, 3]]
"""Targets of the ranks' micro-batches; none: a micro-batch that only takes part."""


def test_gradients_are_those_of_one_process_on_every_mesh(tmp_path: Path) -> None:
    """Micro-batches of unequal size, two losses one after the other."""
    assert ranks(4, _accumulate, tmp_path, hosts=2) == [0] * 4
    model = TwoMethods()
    batch = torch.cat([values for rank in range(4) for values in toy_batches(rank)])
    first, second = (model.reconstruction_loss(model.encode_semantic(values)) for values in (batch, batch * 2))
    (0.5 * first.value + 0.25 * second.value).backward()
    for shard in ("none", "host", "all"):
        gradients = torch.load(tmp_path / f"{shard}.pt")
        assert gradients.pop("unread") is None
        for name, gradient in gradients.items():
            assert torch.allclose(gradient, model.get_parameter(name).grad, rtol=1e-5, atol=1e-7), (shard, name)


def toy_batches(rank: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(rank)
    return [torch.randn(count, 8, generator=generator) for count in TARGETS[rank]]


def _accumulate(folder: Path) -> None:
    with init_distributed(torch.device("cpu")) as distributed:
        for shard in ("none", "host", "all"):
            model = TwoMethods()
            shard_model(model, torch.device("cpu"), distributed.mesh_shape(shard))
            parameters = list(model.parameters())
            with torch.no_grad():  # leaves the parameters outside the block gathered
                model.reconstruction_loss(torch.ones(1, 8))
            for weight, factor in ((0.5, 1), (0.25, 2)):

                def loss_of(values: torch.Tensor, model=model, factor=factor) -> Loss:
                    semantic = model.encode_semantic(values * factor if len(values) else torch.ones(1, 8))
                    loss = model.reconstruction_loss(semantic)
                    return Loss(loss.value, len(values))

                accumulate(model, parameters, toy_batches(distributed.rank), weight, loss_of, distributed)
            gradients = {
                name: None if value.grad is None else value.grad.full_tensor()
                for name, value in model.named_parameters()
            }
            if distributed.is_main_process:
                torch.save(gradients, folder / f"{shard}.pt")
