"""Parameters that no process holds whole: fully sharded data parallelism (FSDP2, arXiv 2304.11277).

Every process keeps some rows of each parameter, of its gradient and of its moments. A block is gathered for its own
forward and backward pass. What lies outside the blocks (embeddings, heads, last norms, tables of positions) is one more
unit: gathered at the first call of :data:`PASSES` and kept until the backward pass ends, so that a pass may read these
weights wherever it likes. Frozen parameters are sharded too, and have no gradient to be added up.
"""

import warnings
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from reca.models.base import UnifiedModel
from reca.training.activation_checkpointing import blocks
from reca.training.precision import stored

PASSES = ("encode_semantic", "encode_target", "reconstruction_loss", "text_to_image_loss", "understanding_loss")
"""The methods through which training runs a model; no other may be called while it is sharded."""
IN_PLACE = "FSDP2-wrapped module .* returned a view tensor"
"""torch warns of results that are views, since changing one in place would lose a hook. None of ours is changed."""


def shard(model: UnifiedModel, device: torch.device, rounded: Iterable[str] = ()) -> None:
    """Keep this process's rows of every parameter, in place and on its device.

    All processes of the default group must call it. Names of parameters stay, the parameters are other objects.
    Unit by unit: of a model that was loaded as views of its files, a process never holds more than its rows and one
    unit in memory of its own.

    Args:
        model: Whole, on the CPU or the device.
        device: Where the rows go.
        rounded: As for :func:`reca.training.precision.move_to`; a unit may mix types as long as what trains has one.
    """
    narrow = {model.get_parameter(name) for name in rounded}
    warnings.filterwarnings("ignore", IN_PLACE, UserWarning)
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for unit in (*blocks(model), model):
        for tensor in _tensors(unit):
            tensor.data = stored(tensor.data, tensor in narrow)
        fully_shard(unit, mesh=mesh)
        assert isinstance(unit, FSDPModule)
        # Sums, since the loop divides by the targets of all processes; and as plain sums, for gloo knows no other.
        unit.set_gradient_divide_factor(1.0)
        unit.set_force_sum_reduction_for_comms(True)
    for name in PASSES:
        register_fsdp_forward_method(model, name)


def _tensors(unit: nn.Module) -> Iterator[Tensor]:
    """Floating-point parameters and buffers that are not sharded yet."""
    for tensor in (*unit.parameters(), *unit.buffers()):
        if tensor.is_floating_point() and not isinstance(tensor, DTensor):
            yield tensor


def gather(model: nn.Module, keep: bool) -> None:
    """Put whole parameters, on the CPU, in the place of sharded ones; the model can be saved then, but not run.

    Tensor by tensor, so that no device ever holds more than one of them. All processes must call it. Without sharded
    parameters nothing happens.

    Args:
        model: Changed in place.
        keep: Whether this process wants them; the others help only, and keep their rows.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
    whole: dict[nn.Parameter, nn.Parameter] = {}  # tied parameters stay one
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if not isinstance(parameter, DTensor):
                continue
            if parameter not in whole:
                full = parameter.full_tensor().detach()
                whole[parameter] = nn.Parameter(full.cpu(), requires_grad=False) if keep else parameter
            setattr(module, name, whole[parameter])


def local_shard(tensor: Tensor) -> tuple[Tensor, int]:
    """This process's rows of a tensor, as a view, and the number of the first of them; all rows where it is whole."""
    if not isinstance(tensor, DTensor):
        return tensor.detach(), 0
    rows, mesh = tensor.shape[0], tensor.device_mesh
    each = -(-rows // mesh.size())  # as torch.chunk does: the last processes may have fewer, or none
    own: Tensor = tensor.to_local()
    return own.detach(), min(each * mesh.get_local_rank(), rows)


def shard_like(parameter: Tensor, rows: Tensor) -> Tensor:
    """This process's rows of something that has as many rows as a parameter, sharded as the parameter is.

    Args:
        parameter: Sharded or whole.
        rows: As many as :func:`local_shard` of it; further dimensions are free.
    """
    if not isinstance(parameter, DTensor):
        return rows
    shape = torch.Size([*parameter.shape[:1], *rows.shape[1:]])
    stride = torch.empty(shape, device="meta").stride()
    mesh, placements = parameter.device_mesh, parameter.placements
    found: Tensor = DTensor.from_local(rows, mesh, placements, run_check=False, shape=shape, stride=stride)
    return found
