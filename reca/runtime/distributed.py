"""The training process: its device and threads, its place among others, and how it ends: told to, or left alone."""

import ctypes
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType
from typing import TYPE_CHECKING, TypeVar

from reca.runtime.errors import UserError

if TYPE_CHECKING:
    import torch

GUARD = "RECA_GUARD_PID"
"""Environment variable with the process of the flow that wants a stage's result (flows/guard.py)."""
PR_SET_PDEATHSIG = 1  # linux/prctl.h
PROCESS_GROUP_TIMEOUT = timedelta(hours=1)
"""For the slowest process: the first one writes checkpoints and waits for locks while the others wait for it."""
BUCKET_BYTES = 2**26
"""Of gradients in one message: a hundred messages of a norm's weights cost more than their bytes."""
Item = TypeVar("Item")
Value = TypeVar("Value")


def prepare(device: str, threads: int) -> "torch.device":
    """Choose the device, limit the threads, and make the CPU deterministic.

    Args:
        device: See :func:`choose_device`.
        threads: CPU threads.
    """
    import torch

    torch.set_num_threads(threads)
    chosen = choose_device(device)
    if chosen.type == "cpu":
        # On CUDA deterministic kernels are slower and some are missing: there, runs are alike but not bit-equal.
        torch.use_deterministic_algorithms(True)
        # Filling fresh memory costs time, and we read none that was not written.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return chosen


def choose_device(name: str) -> "torch.device":
    """The device that ``hardware.device`` means; ``auto`` is CUDA where there is a GPU."""
    import torch

    return torch.device("cuda" if name == "auto" and torch.cuda.is_available() else name.replace("auto", "cpu"))


@dataclass(frozen=True)
class DistributedContext:
    """This process's place among those that share a stage. Alone, every method costs and changes nothing."""

    rank: int = 0
    world_size: int = 1
    device: "torch.device | None" = None
    """Where gradients lie."""
    sharded: bool = False
    """Whether each process holds some rows of every parameter (:mod:`reca.training.fsdp`), not all of them."""

    @property
    def is_main_process(self) -> bool:
        """Whether this is the one process that writes and speaks."""
        return self.rank == 0

    def shard(self, items: Sequence[Item]) -> Sequence[Item]:
        """This process's share of something that all of them know; it may be empty."""
        return items[self.rank :: self.world_size]

    def all_reduce_sum(self, values: Sequence[float]) -> list[float]:
        """Sums over all processes, the same to the last bit on each of them."""
        if self.world_size == 1:
            return list(values)
        import torch

        sums = self.all_reduce_(torch.tensor(values, dtype=torch.float64, device=self.device))
        return [float(value) for value in sums.tolist()]

    def all_reduce_(self, values: "torch.Tensor") -> "torch.Tensor":
        """The same of numbers on the device, in place; no CPU waits for them."""
        if self.world_size > 1:
            import torch

            torch.distributed.all_reduce(values)
        return values

    def broadcast(self, word: str) -> str:
        """What the leading process says, on every process."""
        if self.world_size == 1:
            return word
        import torch

        words = [word]
        torch.distributed.broadcast_object_list(words, device=self.device)
        return words[0]

    def all_gather(self, facts: Mapping[str, Value]) -> dict[str, Value]:
        """What each process knows, put together on every process."""
        if self.world_size == 1:
            return dict(facts)
        import torch

        found: list[Mapping[str, Value]] = [{}] * self.world_size
        torch.distributed.all_gather_object(found, facts)
        return {name: fact for each in found for name, fact in each.items()}

    def barrier(self) -> None:
        """Return when all processes have come here.

        Raises:
            LostProcess: One of them will not.
        """
        if self.world_size == 1:
            return
        import torch

        try:
            # On the CPU, by gloo: it notices when another process is gone.
            torch.distributed.all_reduce(torch.zeros(1))
        except RuntimeError as error:
            print(
                "reca: another process of this stage has ended before its time. What is finished is kept, and the same "
                f"command goes on from there ({str(error).splitlines()[0]})",
                file=sys.stderr,
            )
            raise LostProcess from None

    def all_reduce_gradients(self, parameters: Sequence["torch.nn.Parameter"], told: bool) -> bool:
        """Add up the gradients of all processes, in place; those of sharded parameters have been, as they came.

        Args:
            parameters: The same ones on every process.
            told: Whether this process was told to end; it travels along, so that asking costs no message of its own.

        Returns:
            Whether any process was told to end.
        """
        if self.world_size == 1:
            return told
        if self.sharded:
            return self.all_reduce_sum([float(told)]) != [0.0]
        import torch

        *counts, ending = self.all_reduce_sum(
            [*(float(parameter.grad is not None) for parameter in parameters), float(told)]
        )
        gradients = list[torch.Tensor]()
        for parameter, count in zip(parameters, counts, strict=True):
            if not count:  # reached by no sample of the step: the optimizer must not see a gradient, be it 0
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
        return ending > 0


def _buckets(gradients: Sequence["torch.Tensor"]) -> Iterator[list["torch.Tensor"]]:
    """Neighbours of one type that travel as one message; a larger gradient is a bucket of its own."""
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
def init_distributed(device: "torch.device | str", sharded: bool = False) -> Iterator[DistributedContext]:
    """Take this process's place among those that were launched together, if they were; all but the first fall silent.

    A launcher says so in RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT: ours, or torchrun. Inside another
    ``init_distributed`` the place is the one that was taken there.

    Args:
        device: Of this process; a name is chosen by :func:`choose_device`, and not before there are several.
        sharded: Whether the processes are to share one model's parameters; one alone has nobody to share with.

    Raises:
        UserError: There is no GPU for this process.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        yield SINGLE_PROCESS
        return
    import torch

    device = choose_device(device) if isinstance(device, str) else device
    if torch.distributed.is_initialized():
        yield DistributedContext(torch.distributed.get_rank(), torch.distributed.get_world_size(), device, sharded)
        return
    on_cuda = device.type == "cuda"
    if on_cuda:
        place, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if place >= gpus:
            raise UserError(f"there are {gpus} GPUs for more processes; set hardware.processes={gpus}")
        torch.cuda.set_device(place)
    torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if on_cuda else "gloo", timeout=PROCESS_GROUP_TIMEOUT)
    distributed = DistributedContext(torch.distributed.get_rank(), torch.distributed.get_world_size(), device, sharded)
    if distributed.is_main_process:
        yield distributed
    else:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
            yield distributed
    torch.distributed.destroy_process_group()  # not after an error: the others may never come to it


def end_with_parent() -> None:
    """Ask the kernel for SIGTERM when the parent dies, so that no orphan trains on (Linux; elsewhere: nothing).

    Under ``nohup`` (SIGHUP ignored) the user has asked for the opposite, and gets it.
    """
    if sys.platform != "linux" or signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        return
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:  # it died in between, and the kernel will not say so any more
        os.kill(os.getpid(), signal.SIGTERM)


class LostProcess(SystemExit):
    """Another of several processes has died."""

    STATUS = os.EX_TEMPFAIL

    def __init__(self) -> None:
        super().__init__(self.STATUS)


class Interrupted(SystemExit):
    """The run was told to end and has saved its last step; the exit status is 128 + signal, as in a shell."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(128 + signal_number)


class StopRequest:
    """Notes SIGTERM and SIGINT, so that the loop can end between two steps; a second SIGINT ends it at once.

    SIGUSR1 counts as SIGTERM: what starts processes on several hosts hands that one on. Use it in a ``with`` block, in
    the main thread.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._before: dict[int, signal._HANDLER] = {}

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.signal_number is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal_number = signal.SIGTERM if number == signal.SIGUSR1 else number
