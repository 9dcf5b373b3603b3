"""The processes of a stage: device, threads and collectives."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from reca.runtime.errors import UserError

if TYPE_CHECKING:
    import torch

PROCESS_GROUP_TIMEOUT = timedelta(hours=1)
"""Long, because all ranks wait in a collective while rank 0 writes a checkpoint or acquires a lock."""
BUCKET_BYTES = 2**26
"""Gradients per all-reduce: a hundred messages of a norm's weights cost more than their bytes."""
Item = TypeVar("Item")
Value = TypeVar("Value")


def configure_device(device: str, threads: int) -> "torch.device":
    """Choose the device, limit the threads, and make the CPU deterministic."""
    import torch

    torch.set_num_threads(threads)
    resolved = choose_device(device)
    if resolved.type == "cpu":
        # On CUDA deterministic kernels are slower and some do not exist: runs there are equal up to rounding only.
        torch.use_deterministic_algorithms(True)
        # Filling fresh memory costs time, and no code of ours reads uninitialised memory.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return resolved


def choose_device(name: str) -> "torch.device":
    """Resolve ``hardware.device``; ``auto`` is CUDA if there is a GPU."""
    import torch

    return torch.device("cuda" if name == "auto" and torch.cuda.is_available() else name.replace("auto", "cpu"))


@dataclass(frozen=True)
class DistributedContext:
    """Rank and collectives of this process; with one process, every method is free and changes no value."""

    rank: int = 0
    world_size: int = 1
    device: "torch.device | None" = None
    """Device of the gradients."""
    sharded: bool = False
    """``True`` if parameters are sharded over the ranks (:mod:`reca.training.fsdp`) instead of replicated."""

    @property
    def is_main_process(self) -> bool:
        """Return whether this is rank 0, which writes files and prints."""
        return self.rank == 0

    def shard(self, items: Sequence[Item]) -> Sequence[Item]:
        """Return this rank's share of ``items``, which may be empty."""
        return items[self.rank :: self.world_size]

    def all_reduce_sum(self, values: Sequence[float]) -> list[float]:
        """Return the sums over all ranks, bit-equal on every rank."""
        if self.world_size == 1:
            return list(values)
        import torch

        sums = self.all_reduce_(torch.tensor(values, dtype=torch.float64, device=self.device))
        return [float(value) for value in sums.tolist()]

    def all_reduce_(self, values: "torch.Tensor") -> "torch.Tensor":
        """Sum a tensor over all ranks in place, without a device sync."""
        if self.world_size > 1:
            import torch

            torch.distributed.all_reduce(values)
        return values

    def broadcast(self, text: str) -> str:
        """Return rank 0's text on every rank."""
        if self.world_size == 1:
            return text
        import torch

        objects = [text]
        torch.distributed.broadcast_object_list(objects, device=self.device)
        return objects[0]

    def all_gather(self, entries: Mapping[str, Value]) -> dict[str, Value]:
        """Return the union of all ranks' entries on every rank."""
        if self.world_size == 1:
            return dict(entries)
        import torch

        mappings: list[Mapping[str, Value]] = [{}] * self.world_size
        torch.distributed.all_gather_object(mappings, entries)
        return {name: value for mapping in mappings for name, value in mapping.items()}

    def barrier(self) -> None:
        """Return when every rank has called it.

        Raises:
            SystemExit: A rank has died.
        """
        if self.world_size == 1:
            return
        import torch

        try:
            # An all-reduce on the CPU, because gloo notices when another process has died.
            torch.distributed.all_reduce(torch.zeros(1))
        except RuntimeError:  # the launcher reports which one
            raise SystemExit(os.EX_TEMPFAIL) from None

    def all_reduce_gradients(self, parameters: Sequence["torch.nn.Parameter"], stop_requested: bool) -> bool:
        """Sum the gradients over all ranks in place; FSDP has done so already for sharded parameters.

        Args:
            parameters: The same ones on every rank.
            stop_requested: Whether this rank has received a signal; it travels along, to save a message.

        Returns:
            Whether any rank has received a signal.
        """
        if self.world_size == 1:
            return stop_requested
        if self.sharded:
            return self.all_reduce_sum([float(stop_requested)]) != [0.0]
        import torch

        has_gradient = [float(parameter.grad is not None) for parameter in parameters]
        *counts, stop_requests = self.all_reduce_sum([*has_gradient, float(stop_requested)])
        gradients = list[torch.Tensor]()
        for parameter, count in zip(parameters, counts, strict=True):
            if not count:  # reached by no sample of any rank: the optimizer must see None here, not 0
                continue
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
        for bucket in _buckets(gradients):
            flat = torch.cat([gradient.flatten() for gradient in bucket]) if len(bucket) > 1 else bucket[0]
            torch.distributed.all_reduce(flat)
            if len(bucket) > 1:
                sums = flat.split([gradient.numel() for gradient in bucket])
                for gradient, total in zip(bucket, sums, strict=True):
                    gradient.copy_(total.view_as(gradient))
        return stop_requests > 0


def _buckets(gradients: Sequence["torch.Tensor"]) -> Iterator[list["torch.Tensor"]]:
    """Group neighbours of equal dtype into messages of ``BUCKET_BYTES``; a larger gradient is a bucket by itself."""
    bucket, size = list["torch.Tensor"](), 0
    for gradient in gradients:
        if bucket and (size + gradient.nbytes > BUCKET_BYTES or gradient.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(gradient)
        size += gradient.nbytes
    if bucket:
        yield bucket


SINGLE_PROCESS = DistributedContext()


@contextmanager
def init_distributed(device: "torch.device", sharded: bool = False) -> Iterator[DistributedContext]:
    """Join the process group of the launcher, if there is one; stdout of all ranks but 0 is discarded.

    A launcher, ours or torchrun, sets RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT.

    Args:
        device: Of this process.
        sharded: Whether the ranks are to shard the model's parameters; ignored for a single process.

    Raises:
        UserError: There are fewer GPUs than processes.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        yield SINGLE_PROCESS
        return
    import torch

    on_cuda = device.type == "cuda"
    if on_cuda:
        local_rank, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local_rank >= gpus:
            raise UserError(f"there are more processes than the {gpus} GPUs; set hardware.processes={gpus}")
        torch.cuda.set_device(local_rank)
    torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if on_cuda else "gloo", timeout=PROCESS_GROUP_TIMEOUT)
    distributed = DistributedContext(torch.distributed.get_rank(), torch.distributed.get_world_size(), device, sharded)
    if distributed.is_main_process:
        yield distributed
    else:
        with open(os.devnull, "w") as devnull, redirect_stdout(devnull):
            yield distributed
    torch.distributed.destroy_process_group()  # not after an error: it may block until the other ranks call it too
