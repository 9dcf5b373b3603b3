"""Data parallelism over a device mesh (replicas, ranks of a replica), by FSDP2 (arXiv 2304.11277).

(N, 1) replicates the model as DDP does, (1, N) shards it over all ranks, (hosts, ranks per host) shards it inside a
host and replicates it across hosts (HSDP). Every rank keeps some rows of every parameter, its gradient and its
optimizer state; with (N, 1) these are all rows. A block is gathered for its forward and backward pass. The parameters
outside the blocks (embeddings, heads, last norms, position tables) form one more unit, which is gathered at the first
call of :data:`FORWARD_METHODS` and kept until the backward pass ends, so that all code of a pass may read these
weights. Frozen parameters are sharded too, and need no gradient reduction.
"""

import warnings
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.distributed.tensor import zeros as distributed_zeros

from reca.models.base import UnifiedModel
from reca.training.activation_checkpointing import blocks
from reca.training.precision import to_storage_dtype

FORWARD_METHODS = (
    "encode_semantic",
    "encode_target",
    "reconstruction_loss",
    "text_to_image_loss",
    "understanding_loss",
)
"""Methods that training calls on a model; no other may be called while it is sharded."""
VIEW_WARNING = "FSDP2-wrapped module .* returned a view tensor"
"""torch warns of results that are views, because changing one in place would lose a hook. Ours are not changed."""


def shard_model(
    model: UnifiedModel, device: torch.device, mesh_shape: tuple[int, int], bf16: Iterable[str] = ()
) -> None:
    """Shard every parameter over the ranks, in place and on the rank's device.

    Collective. Parameter names stay the same, the parameters are new objects. The model is sharded unit by unit: if it
    was loaded as views of its files, a rank allocates no more than its rows and one unit.

    Args:
        model: Not sharded, on the CPU or the device.
        device: Of the shards.
        mesh_shape: See :meth:`reca.runtime.distributed.DistributedContext.mesh_shape`.
        bf16: As for :func:`reca.training.precision.move_to`; a unit may mix types as long as its trained parameters
            have one.
    """
    bf16_parameters = {model.get_parameter(name) for name in bf16}
    warnings.filterwarnings("ignore", VIEW_WARNING, UserWarning)
    mesh = init_device_mesh(device.type, mesh_shape, mesh_dim_names=("replicate", "shard"))
    for unit in (*blocks(model), model):
        for tensor in _tensors(unit):
            tensor.data = to_storage_dtype(tensor.data, tensor in bf16_parameters)
        fully_shard(unit, mesh=mesh)
        assert isinstance(unit, FSDPModule)
        # Sums, because the loop divides by the targets of all ranks; plain sums, because gloo has no other reduction.
        unit.set_gradient_divide_factor(1.0)
        unit.set_force_sum_reduction_for_comms(True)
    for name in FORWARD_METHODS:
        register_fsdp_forward_method(model, name)


def _tensors(unit: nn.Module) -> Iterator[Tensor]:
    """Yield floating-point parameters and buffers that are not sharded yet."""
    for tensor in (*unit.parameters(), *unit.buffers()):
        if tensor.is_floating_point() and not isinstance(tensor, DTensor):
            yield tensor


def gather_parameters(model: nn.Module, keep: bool) -> None:
    """Replace sharded parameters by full ones on the CPU; the model can be saved then, but not run.

    Collective, and without effect on a model that is not sharded. Gathers tensor by tensor, so that a device never
    holds more than one full parameter.

    Args:
        model: Changed in place.
        keep: Whether this rank keeps the full parameters; the others keep their shards.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
    full_parameters: dict[nn.Parameter, nn.Parameter] = {}  # tied parameters stay tied
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if not isinstance(parameter, DTensor):
                continue
            if parameter not in full_parameters:
                full = parameter.full_tensor().detach()
                full_parameters[parameter] = nn.Parameter(full.cpu(), requires_grad=False) if keep else parameter
            setattr(module, name, full_parameters[parameter])


def zeros_like_rows(parameter: Tensor, row: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return zeros with the rows of a parameter, each of shape ``row``: as many, and sharded like it."""
    size = [*parameter.shape[:1], *row]
    if not isinstance(parameter, DTensor):
        return torch.zeros(size, dtype=dtype, device=parameter.device)
    zeros: Tensor = distributed_zeros(
        size, dtype=dtype, device_mesh=parameter.device_mesh, placements=parameter.placements
    )
    return zeros
