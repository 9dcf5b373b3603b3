"""The ranks of a stage: process state and collectives, by accelerate; a single process imports neither it nor torch."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Literal, TypeVar

from reca.runtime.errors import UserError

if TYPE_CHECKING:
    import torch

PROCESS_GROUP_TIMEOUT = timedelta(hours=1)
"""Long, because all ranks wait in a collective while rank 0 writes a checkpoint or acquires a lock."""
Item = TypeVar("Item")
Value = TypeVar("Value")


@dataclass(frozen=True)
class DistributedContext:
    """Rank and collectives of this process; with one process, every method is free and changes no value."""

    rank: int = 0
    world_size: int = 1
    ranks_per_host: int = 1
    device: "torch.device | None" = None
    """Device of this rank."""

    @property
    def is_main_process(self) -> bool:
        """Return whether this is rank 0, which writes files and prints."""
        return self.rank == 0

    def shard(self, items: Sequence[Item]) -> Sequence[Item]:
        """Return this rank's share of ``items``, which may be empty."""
        return items[self.rank :: self.world_size]

    def mesh_shape(self, shard: Literal["none", "host", "all"]) -> tuple[int, int]:
        """Return the number of replicas of the model, and of ranks per replica, for ``hardware.shard``."""
        per_replica = {"none": 1, "host": self.ranks_per_host, "all": self.world_size}[shard]
        return self.world_size // per_replica, per_replica

    def all_reduce_sum(self, values: Sequence[float]) -> list[float]:
        """Return the sums over all ranks, bit-equal on every rank."""
        if self.world_size == 1:
            return list(values)
        import torch

        sums: list[float] = self.all_reduce(torch.tensor(values, dtype=torch.float64, device=self.device)).tolist()
        return sums

    def all_reduce(self, values: "torch.Tensor") -> "torch.Tensor":
        """Return the sum of a tensor over all ranks, without a device sync."""
        if self.world_size == 1:
            return values
        from accelerate.utils import reduce

        total: torch.Tensor = reduce(values, "sum")
        return total

    def broadcast(self, text: str) -> str:
        """Return rank 0's text on every rank."""
        if self.world_size == 1:
            return text
        from accelerate.utils import broadcast_object_list

        (received,) = broadcast_object_list([text])
        return str(received)

    def all_gather(self, entries: Mapping[str, Value]) -> dict[str, Value]:
        """Return the union of all ranks' entries on every rank."""
        if self.world_size == 1:
            return dict(entries)
        from accelerate.utils import gather_object

        return {name: value for mapping in gather_object([entries]) for name, value in mapping.items()}

    def barrier(self) -> None:
        """Return when every rank has called it.

        Raises:
            SystemExit: A rank has died.
        """
        if self.world_size == 1:
            return
        import torch

        try:
            # An all-reduce on the CPU, because gloo notices when another process has died; accelerate's barrier is
            # NCCL's on GPUs, which waits for it until the timeout.
            torch.distributed.all_reduce(torch.zeros(1))
        except RuntimeError:  # the launcher reports which one
            raise SystemExit(os.EX_TEMPFAIL) from None


SINGLE_PROCESS = DistributedContext()


@contextmanager
def init_distributed(device: "torch.device") -> Iterator[DistributedContext]:
    """Join the process group of the launcher, if there is one; stdout of all ranks but 0 is discarded.

    A launcher (ours, accelerate's or torchrun) sets RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT. Without
    LOCAL_WORLD_SIZE all ranks count as those of one host.

    Raises:
        UserError: There are fewer GPUs than processes, or hosts have unequal numbers of processes.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        yield SINGLE_PROCESS
        return
    import torch
    from accelerate import PartialState

    on_cuda, gpus = device.type == "cuda", torch.cuda.device_count()
    if on_cuda and int(os.environ["LOCAL_RANK"]) >= gpus:
        raise UserError(f"there are more processes than the {gpus} GPUs; set hardware.processes={gpus}")
    ranks_per_host = int(os.environ.setdefault("LOCAL_WORLD_SIZE", str(world_size)))
    if world_size % ranks_per_host:
        raise UserError(f"{world_size} processes are not the same number on every host ({ranks_per_host} on this one)")
    os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))  # else accelerate chooses for all cores
    # cpu=True where no GPU is used: otherwise every process believes that it is alone, and main.
    options = {"backend": "cpu:gloo,cuda:nccl"} if on_cuda else {"cpu": True}
    state = PartialState(timeout=PROCESS_GROUP_TIMEOUT, **options)
    distributed = DistributedContext(state.process_index, state.num_processes, ranks_per_host, device)
    if distributed.is_main_process:
        yield distributed
    else:
        with open(os.devnull, "w") as devnull, redirect_stdout(devnull):
            yield distributed
    state.destroy_process_group()  # not after an error: it may block until the other ranks call it too
    PartialState._reset_state()  # else the next group of this process would be taken for this one
