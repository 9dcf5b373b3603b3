"""What a run costs the machine: CPU, memory and GPUs, sampled into a CSV file while a block runs.

The names are MLflow's, so that its page "System metrics" shows them once ``reca register`` has logged the file,
which the environment variable :data:`FILE_VARIABLE` names.
"""

import csv
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil  # type: ignore[import-untyped]

FILE_VARIABLE = "RECA_SYSTEM_METRICS"
"""Path of the file, handed from the flow to ``reca register``; its stem, ``system``, prefixes the metrics."""
GPU_QUERY = ["nvidia-smi", "--query-gpu=utilization.gpu,memory.used", "--format=csv,noheader,nounits"]


@contextmanager
def sample_to_csv(path: Path, every_seconds: float = 5.0) -> Iterator[None]:
    """Append a row to ``path`` every few seconds as long as the block runs, and one at its end.

    A file that cannot be written, or a GPU that does not answer, ends the sampling and nothing else.
    """
    stop = threading.Event()
    path.parent.mkdir(parents=True, exist_ok=True)
    thread = threading.Thread(target=_sample, args=(path, every_seconds, stop), daemon=True, name="system metrics")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=10)


def _sample(path: Path, every_seconds: float, stop: threading.Event) -> None:
    psutil.cpu_percent()  # the first call has nothing to compare with
    try:
        with path.open("w", newline="", buffering=1) as file:
            writer: csv.DictWriter[str] | None = None
            while True:
                stopped = stop.wait(every_seconds)
                row = _measure()
                if writer is None:
                    writer = csv.DictWriter(file, list(row))
                    writer.writeheader()
                writer.writerow(row)
                if stopped:
                    return
    except (OSError, ValueError, subprocess.SubprocessError):
        return


def _measure() -> dict[str, str]:
    """One row: time (s), the machine's CPU (%) and memory, and that of this process and all below it (MB)."""
    memory = psutil.virtual_memory()
    row = {
        "timestamp": f"{time.time():.3f}",
        "cpu_utilization_percentage": f"{psutil.cpu_percent():.1f}",
        "system_memory_usage_megabytes": f"{memory.used / 1e6:.0f}",
        "system_memory_usage_percentage": f"{memory.percent:.1f}",
        "run_memory_usage_megabytes": f"{_memory_of_this_run() / 1e6:.0f}",
    }
    for number, (utilization, used) in enumerate(_gpus()):
        row[f"gpu_{number}_utilization_percentage"] = utilization
        row[f"gpu_{number}_memory_usage_megabytes"] = used
    return row


def _memory_of_this_run() -> int:
    """Bytes in RAM; pages that processes share are counted for each of them."""
    total = 0
    me = psutil.Process()
    for process in (me, *me.children(recursive=True)):
        try:
            total += process.memory_info().rss
        except psutil.Error:  # it has just ended
            continue
    return total


def _gpus() -> list[tuple[str, str]]:
    if shutil.which(GPU_QUERY[0]) is None:
        return []
    done = subprocess.run(GPU_QUERY, capture_output=True, text=True, timeout=5)
    lines = [line.split(",") for line in done.stdout.splitlines()] if done.returncode == 0 else []
    return [(utilization.strip(), used.strip()) for utilization, used in lines]
