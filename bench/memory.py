"""Predicted memory of a training step, compared with a process's real memory.

    python -m bench.memory                            # five families, tiny and middle, on the CPU: some minutes
    python -m bench.memory --families janus --sizes tiny

Per family and size, with and without recomputed activations, the same step (L_RecA, two micro-batches, AdamW; float32)

    predicted   tools.memory.step.estimate_step: a model of fake tensors
    tensors     the storages alive while the step runs with real numbers, operator by operator (``measure_step``)
    measured    CPU: the peak of resident memory (VmHWM) of a separate process, less its memory before the model was
                built; this includes libraries' workspaces and the allocator's unreturned pages.

and the ratios predicted / tensors and predicted / measured. JSON goes to bench/results/memory.json.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench.models import build
from bench.sizes import FAMILIES
from bench.steps import environment_info
from reca.runtime.files import write_json
from reca.training.mixture import build_mixture
from tools.memory.step import Plan, estimate_step, measure_step

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "bench/results/memory.json"
BATCH = {"tiny": 32, "middle": 4}
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
"""glibc returns freed tensors at once, so that resident memory is live memory."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a table, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--sizes", nargs="+", choices=tuple(BATCH), default=list(BATCH))
    parser.add_argument("--output", type=Path, default=RESULT, help="file of the result")
    parser.add_argument("--one", nargs=3, metavar=("FAMILY", "SIZE", "RECOMPUTE"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        family, size, recompute = options.one
        print(json.dumps(resident(family, size, recompute == "True")))
        return 0
    rows = [
        row_of(family, size, recompute) for family in options.families for size in options.sizes for recompute in (0, 1)
    ]
    answer = {
        "question": "how far is the predicted memory of a step from a process's real memory?",
        "batch_sizes": {size: BATCH[size] for size in options.sizes},
        **environment_info(),
        "rows": rows,
    }
    write_json(options.output, answer)
    return 0


def row_of(family: str, size: str, recompute: int) -> dict[str, Any]:
    """Predict and measure a model's step."""
    predicted = estimate_step(_model(family, size), plan(size, bool(recompute)))
    words = [sys.executable, "-m", "bench.memory", "--one", family, size, str(bool(recompute))]
    process = subprocess.run(words, cwd=ROOT, env=os.environ | ALLOCATOR, capture_output=True, text=True, check=True)
    peaks = json.loads(process.stdout.splitlines()[-1])
    tensors, resident_bytes = peaks["tensors"], peaks["process"]
    row = {
        "family": family,
        "size": size,
        "gradient_checkpointing": bool(recompute),
        "parameters": predicted.parameters,
        "predicted_mib": round(predicted.peak / 2**20, 2),
        "tensors_mib": round(tensors / 2**20, 2),
        "measured_mib": round(resident_bytes / 2**20, 2),
        "predicted_over_tensors": round(predicted.peak / tensors, 4),
        "predicted_over_measured": round(predicted.peak / resident_bytes, 3),
    }
    print(
        f"{family:8} {size:7} recomputed={bool(recompute)!s:5} predicted {row['predicted_mib']:8.1f} MiB, "
        f"/ tensors {row['predicted_over_tensors']:.3f}, / process {row['predicted_over_measured']:.2f}",
        flush=True,
    )
    return row


def plan(size: str, recompute: bool) -> Plan:
    """Return a plan of L_RecA alone in two micro-batches."""
    mixture = build_mixture({"reconstruction": 1.0, "text_to_image": 0.0, "understanding": 0.0}, 2 * BATCH[size])
    return Plan(mixture, BATCH[size], processes=1, autocast_bf16=False, gradient_checkpointing=recompute, fused=False)


def resident(family: str, size: str, recompute: bool) -> dict[str, int]:
    """Return this process's peak during the step, less its memory before."""
    torch.set_num_threads(1)
    measure_step(_model(family, "tiny"), plan("tiny", recompute))  # imports and permanent allocations of a first step
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    before = _status("VmRSS")
    step = measure_step(_model(family, size), plan(size, recompute))
    return {"process": _status("VmHWM") - before, "tensors": step.peak}


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def _model(family: str, size: str) -> Any:
    torch.manual_seed(0)
    return build(family, size, torch.device("cpu"))


if __name__ == "__main__":
    sys.exit(main())
