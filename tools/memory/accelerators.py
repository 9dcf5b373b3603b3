"""Memory and peak throughput of the devices that a run can be predicted for."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:  # bench/gpu.py reads the table on machines that have torch and little else
    from reca.config.sections import HardwareSection


@dataclass(frozen=True)
class Accelerator:
    """One device, from its data sheet."""

    name: str
    memory: int
    """Bytes."""
    peaks: dict[str, float]
    """Dense operations per second by precision; empty: unknown."""


def _gpu(name: str, memory: int, bfloat16: float, float32: float) -> Accelerator:
    return Accelerator(name, memory, {"bfloat16": bfloat16 * 1e12, "float32": float32 * 1e12})


ACCELERATORS = {
    "h100": _gpu("H100 SXM 80 GB", 80 * 2**30, 989, 67),
    "h200": _gpu("H200 SXM 141 GB", 141 * 10**9, 989, 67),
    "a100_80g": _gpu("A100 SXM 80 GB", 80 * 2**30, 312, 19.5),
    "a100_40g": _gpu("A100 SXM 40 GB", 40 * 2**30, 312, 19.5),
    "l40s": _gpu("L40S 48 GB", 48 * 10**9, 362, 91.6),
}
"""Names in the configuration -> NVIDIA's data sheets, without sparsity; float32 off the tensor cores."""
DEVICE_NAMES = {"H100": "h100", "H200": "h200", "A100-SXM4-80": "a100_80g", "A100-SXM4-40": "a100_40g", "L40S": "l40s"}
"""Part of torch's device name -> name in the configuration."""


def accelerator_name(device: str) -> str | None:
    """Return the name in the configuration for torch's device name; ``None`` if unknown."""
    return next((name for part, name in DEVICE_NAMES.items() if part in device), None)


def select_accelerator(hardware: "HardwareSection") -> Accelerator | None:
    """Return the device that ``hardware`` names, or the local one; ``None`` if a GPU is required but absent.

    A CPU has the machine's memory, divided by ``hardware.processes``.
    """
    if hardware.device != "cpu" and hardware.forecast_gpu is not None:
        return ACCELERATORS[hardware.forecast_gpu]
    if hardware.device != "cpu" and torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        name = accelerator_name(properties.name)
        return Accelerator(properties.name, properties.total_memory, ACCELERATORS[name].peaks if name else {})
    if hardware.device == "cuda":
        return None
    import psutil  # type: ignore[import-untyped]

    return Accelerator("CPU", psutil.virtual_memory().total // hardware.processes, {})
