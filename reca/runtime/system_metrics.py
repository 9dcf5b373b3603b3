"""CPU, memory and GPU use of a run, sampled into a CSV file.

The names are MLflow's, so that its page "System metrics" shows them once ``reca register`` has logged the file.
MLflow's own monitor needs an active run, which this pipeline creates only at registration.
"""

import csv
import logging
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil  # type: ignore[import-untyped]

FILE_VARIABLE = "RECA_SYSTEM_METRICS"
"""Environment variable with the path of the file, set by the flow for ``reca register``."""
GPU_QUERY = ["nvidia-smi", "--query-gpu=utilization.gpu,memory.used", "--format=csv,noheader,nounits"]


@contextmanager
def sample_to_csv(path: Path, every_seconds: float = 5.0) -> Iterator[None]:
    """Append a row to ``path`` every few seconds while the block runs, and one at its end.

    An error ends the sampling with a warning in the log; the block continues.
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
    psutil.cpu_percent()  # the first call returns 0: it has no earlier sample
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
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        logging.getLogger(__name__).warning("system metrics end here: %s (%s)", error, path)


def _measure() -> dict[str, str]:
    """Return one row: time (s), the machine's CPU (%) and memory, and the memory of this process tree (MB)."""
    memory = psutil.virtual_memory()
    row = {
        "timestamp": f"{time.time():.3f}",
        "cpu_utilization_percentage": f"{psutil.cpu_percent():.1f}",
        "system_memory_usage_megabytes": f"{memory.used / 1e6:.0f}",
        "system_memory_usage_percentage": f"{memory.percent:.1f}",
        "run_memory_usage_megabytes": f"{_memory_of_this_run() / 1e6:.0f}",
    }
    for number, (utilization, memory_used) in enumerate(_gpus()):
        row[f"gpu_{number}_utilization_percentage"] = utilization
        row[f"gpu_{number}_memory_usage_megabytes"] = memory_used
    return row


def _memory_of_this_run() -> int:
    """Return the bytes in RAM of this process tree; shared pages count once per process."""
    total = 0
    me = psutil.Process()
    for process in (me, *me.children(recursive=True)):
        try:
            total += process.memory_info().rss
        except psutil.Error:  # the process has just ended
            continue
    return total


def _gpus() -> list[tuple[str, str]]:
    if shutil.which(GPU_QUERY[0]) is None:
        return []
    query = subprocess.run(GPU_QUERY, capture_output=True, text=True, timeout=5)
    rows = [line.split(",") for line in query.stdout.splitlines()] if query.returncode == 0 else []
    return [(utilization.strip(), memory.strip()) for utilization, memory in rows]
