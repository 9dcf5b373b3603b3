"""Checkpoints that several ranks write together: read by any number of ranks, and refused by all if one fails."""

import math
import os
import resource
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any, get_args

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from reca.config import compose
from reca.runtime.distributed import DistributedContext, init_distributed
from reca.runtime.errors import UserError
from reca.runtime.ports import free_port
from reca.runtime.seeding import derive_seed
from reca.training import checkpoint, low_bit_adamw
from reca.training.checkpoint import CheckpointStore, _tensors, restore
from reca.training.fsdp import shard_model
from reca.training.low_bit_adamw import StateDtype
from reca.training.optimizer import build_optimizer, freeze
from reca.training.step import set_learning_rate
from tests.integration.training.conftest import shallow
from tests.integration.training.ranks import ranks
from tools.tiny_bases.janus_tiny import build

CPU = torch.device("cpu")
STATE_DTYPES: tuple[StateDtype, ...] = get_args(StateDtype)
MODELS = ("full", "adapters", "odd")
Mesh = tuple[int, int]
LAYOUTS: dict[str, Mesh] = {"two hosts of two": (2, 2), "two": (1, 2), "two replicated": (2, 1), "one": (1, 1)}
"""Meshes (replicas, ranks of a replica) that save."""
READERS: tuple[Mesh, ...] = ((1, 4), (2, 1), (1, 1))
ODD_SHAPES = ((3, 2048), (5, 8), (1, 4), (7,), (130, 64, 1, 1))
"""Fewer rows than ranks, uneven rows, vectors, convolutions."""


DRAWN_VALUES, FILE_BYTES = 5000, 2**20
"""Small, so that blocks of random numbers end within shards and ranks write several files."""


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.values = nn.ParameterList([torch.zeros(shape) for shape in ODD_SHAPES])


def network(kind: str, mesh: Mesh) -> dict[str, nn.Parameter]:
    """The trained parameters, on which a test steps without a forward pass."""
    if kind == "odd":
        model: nn.Module = Odd()
        if mesh != (1, 1):
            fully_shard(model, mesh=init_device_mesh("cpu", mesh, mesh_dim_names=("replicate", "shard")))
        return dict(model.named_parameters())
    torch.manual_seed(0)
    model = shallow(build())
    if kind == "adapters":
        from reca.training.lora import adapt

        adapt(model, compose(["train.adapter={rank: 4, alpha: 8}"]).train.adapter, 0)
    if mesh != (1, 1):
        shard_model(model, CPU, mesh)
    return freeze(model, set(model.trainable()))


def built(parameters: Mapping[str, nn.Parameter], state_dtype: StateDtype) -> torch.optim.Optimizer:
    optimizer = build_optimizer(parameters, (0.9, 0.95), 0.01, state_dtype=state_dtype)
    set_learning_rate(optimizer, 1e-3)
    return optimizer


def sharded_like(value: Tensor, parameter: Tensor) -> Tensor:
    """This rank's rows of a whole tensor, without communication."""
    if not isinstance(parameter, DTensor):
        return value
    return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)


def take_step(parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, step: int) -> None:
    """Step on gradients that are a function of name and step; no gradient reaches the first parameter."""
    for name, parameter in list(parameters.items())[1:]:
        generator = torch.Generator().manual_seed(derive_seed(name, step))
        parameter.grad = sharded_like(torch.randn(parameter.shape, generator=generator), parameter)
    optimizer.step()


def write_straight(folder: Path) -> None:
    """Write the states after two and after three steps on one process."""
    for kind, state_dtype in product(MODELS, STATE_DTYPES):
        parameters = network(kind, (1, 1))
        optimizer = built(parameters, state_dtype)
        for step in (1, 2, 3):
            take_step(parameters, optimizer, step)
            safetensors.torch.save_file(_tensors(parameters, optimizer), folder / f"{kind}-{state_dtype}-{step}")


def assert_equal(
    parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, expected: Mapping[str, Tensor]
) -> None:
    state = _tensors(parameters, optimizer)
    assert state.keys() == expected.keys()
    for key, value in state.items():
        whole, rows = expected[key], sharded_like(expected[key], value)
        assert (value.shape, value.dtype) == (whole.shape, whole.dtype)
        if isinstance(value, DTensor) and isinstance(rows, DTensor):
            value, rows = value.to_local(), rows.to_local()
        assert torch.equal(value, rows), key


def group(size: int, port: str) -> Iterator[DistributedContext]:
    """Join a group of the first ranks."""
    os.environ |= {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size), "MASTER_PORT": port}
    if int(os.environ["RANK"]) < size:
        with init_distributed(CPU) as distributed:
            yield distributed


def store(folder: Path, layout: str, kind: str, state_dtype: str) -> CheckpointStore:
    return CheckpointStore(folder / layout / kind, state_dtype, 1)


def _save_and_read(folder: Path, ports: list[str]) -> None:
    """Each layout saves, then each world size reads what each layout has saved, and takes the next step."""
    low_bit_adamw.DRAWN_VALUES, checkpoint.FILE_BYTES = DRAWN_VALUES, FILE_BYTES
    waiting = iter(ports)
    for layout, mesh in LAYOUTS.items():
        for distributed in group(math.prod(mesh), next(waiting)):
            for kind, state_dtype in product(MODELS, STATE_DTYPES):
                parameters = network(kind, mesh)
                optimizer = built(parameters, state_dtype)
                for step in (1, 2):
                    take_step(parameters, optimizer, step)
                store(folder, layout, kind, state_dtype).save(2, parameters, optimizer, {}, {}, distributed)
    for mesh in READERS:
        for distributed in group(math.prod(mesh), next(waiting)):
            for kind in MODELS:
                parameters = network(kind, mesh)
                for state_dtype, layout in product(STATE_DTYPES, LAYOUTS):
                    optimizer = built(parameters, state_dtype)
                    saved = store(folder, layout, kind, state_dtype).latest()
                    assert saved is not None
                    restore(saved, parameters, optimizer)
                    for step in (2, 3):
                        if step == 3:
                            take_step(parameters, optimizer, step)
                        expected = safetensors.torch.load_file(folder / f"{kind}-{state_dtype}-{step}")
                        assert_equal(parameters, optimizer, expected)
            distributed.barrier()  # rank 0 keeps the address book with which others make the groups of a mesh


def test_any_world_size_reads_what_any_other_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights, every kind of optimizer state and the next step are those of one process, bit for bit."""
    monkeypatch.setattr(low_bit_adamw, "DRAWN_VALUES", DRAWN_VALUES)
    write_straight(tmp_path)
    ports = [str(free_port()) for _ in range(len(LAYOUTS) + len(READERS))]
    assert ranks(4, _save_and_read, tmp_path, ports) == [0] * 4
    for layout, mesh in LAYOUTS.items():
        folders = list((tmp_path / layout).glob("*/checkpoints/*/000002"))
        assert len(folders) == len(MODELS) * len(STATE_DTYPES)
        for folder in folders:
            names = [path.name for path in folder.iterdir() if path.name != "meta.json"]
            assert {name.split("-")[1] for name in names} <= {f"{rank + 1:05d}" for rank in range(math.prod(mesh))}
            assert all(name.endswith(".safetensors") for name in names)


ERRORS: dict[str, tuple[type[Exception], str]] = {
    "disk": (UserError, "cannot write the checkpoint of step 2 to .*File too large.*paths.state"),
    "bug": (RuntimeError, "rank 1 is broken"),
}


def broken(*_: object, **__: object) -> bytes:
    raise RuntimeError("rank 1 is broken")


def _fail_on_rank_1(folder: Path, failure: str) -> None:
    """Save on two ranks, of which one cannot write; then save again."""
    parameters: dict[str, Any] = {"weight": nn.Parameter(torch.zeros(400, 1000))}
    with init_distributed(CPU) as distributed:
        module = nn.ParameterDict(parameters)
        fully_shard(module, mesh=init_device_mesh("cpu", (2,)))
        parameters = dict(module.named_parameters())
        optimizer = built(parameters, "float32")
        target = CheckpointStore(folder, "a" * 16, 2)
        target.save(1, parameters, optimizer, {}, {}, distributed)
        before, original = resource.getrlimit(resource.RLIMIT_FSIZE), safetensors.torch.save
        if distributed.rank == 1:
            if failure == "disk":
                resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, before[1]))
            else:
                safetensors.torch.save = broken
        kind, words = ERRORS[failure]
        with pytest.raises(kind, match=words):
            target.save(2, parameters, optimizer, {}, {}, distributed)
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        safetensors.torch.save = original
        distributed.barrier()
        assert [path.name for path in target.folder.iterdir()] == ["000001"]
        distributed.barrier()
        target.save(3, parameters, optimizer, {}, {}, distributed)
        distributed.barrier()
        saved = target.latest()
        assert saved is not None
        assert saved.step == 3


@pytest.mark.parametrize("failure", ["disk", "bug"])
def test_failure_of_one_rank_is_the_error_of_all(failure: str, tmp_path: Path) -> None:
    """The disk of rank 1 is full (a limit of its file size), or its code fails."""
    assert ranks(2, _fail_on_rank_1, tmp_path, failure) == [0, 0]
