"""The device and the threads of a process."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


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
