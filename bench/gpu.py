"""Speed of L_RecA training at the published sizes on one GPU, and the GPU's utilisation.

    make gpu-bench                                            # all five families: under 25 minutes
    python -m bench.gpu --families janus showo
    python -m bench.gpu --faster                              # plain steps only
    python -m bench.gpu --device cpu --tiny --inline          # the same code with small models, as a test

Weights are random, without downloads. A step is that of the training loop with cacheable inputs in memory: the loss
under bfloat16 autocast, backward, clipping, fused AdamW. Trained parameters, their gradients and
both moments are float32, frozen ones bfloat16. Harmon, whose encoder trains, encodes images in the step, in float32 as
the loop does; its frozen part, a small autoencoder, stays float32. Reported are medians of the timed steps:

    images/s   micro-batch / seconds of a step
    tokens/s   images/s x (semantic_tokens + target_tokens); without the template's text tokens
    TFLOP/s    floating-point operations of a step, forward and backward, as counted in that very step
               (formulas in :mod:`tools.memory.flops`; gradients of frozen parts are neither computed nor
               counted) / seconds
    MFU        the same / the device's stated dense bfloat16 peak (:mod:`tools.memory.accelerators`)
    extraction images/s of `extract`'s own code over JPEGs in memory, float32, and its share of the throughput of the
               encoders alone (:mod:`bench.extraction`)
    memory     torch.cuda.max_memory_allocated over the timed steps

Each family is measured twice: with plain eager code, the baseline, and with compiled blocks (BAGEL: and FlexAttention),
whose row has its images/s over the baseline's in the last column.

BAGEL with its optimizer fits on no single GPU: two depths are measured, and seconds, operations and memory are
extrapolated linearly to 28 layers, as noted in its row. A micro-batch that does not fit is halved. Every row is a
separate process, and both rows of a family share a time limit; a row that fails has the reason.
JSON goes to bench/results/gpu_<device>.json. Exit status: 0 if at least one family was measured, 2 without a GPU,
else 1.
"""

import argparse
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench import extraction
from bench.models import build
from bench.sizes import FAMILIES, PUBLISHED, SIZES
from bench.steps import Trainer, environment_info, make_batch, time_call
from reca.models.base import UnifiedModel
from reca.runtime.files import write_json
from reca.training.compile import compile_blocks, enable_flex_attention
from tools.memory.accelerators import ACCELERATORS, accelerator_name
from tools.memory.flops import flops_of

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench/results"
LIMIT_SECONDS = 280
"""Limit for both rows of a family; five families stay under 25 minutes."""
BATCH = {"bagel": 2, "harmon": 8, "janus": 16, "openuni": 32, "showo": 8}
DEPTHS = {"real": (4, 8), "tiny": (1, 2)}
"""Depths at which BAGEL is measured; with 8 layers, weights and moments take about 45 GiB."""
WARM_UP, TIMED = 2, 7
PREFETCH, EXTRACTIONS = 8, 2
"""Batches that extraction prefetches, as in conf/hardware/gpu.yaml, and its number of repeats."""
FASTER = ("compile", "flex_attention")
"""Options of a family's second row; the first row is plain eager code, the baseline."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, write the result."""
    options = parse(arguments)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("bench.gpu: torch finds no GPU here, so there is no measurement (--device cpu --tiny tests the code)")
        return 2
    if options.one:
        write_json(options.output, measure_row(options.one, options, options.faster))
        return 0
    rows, faster = list[dict[str, Any]](), list[dict[str, Any]]()
    for family in options.families:
        start = time.monotonic()
        rows.append(plain := row_of(family, options, (), options.limit_seconds))
        switches = [name for name in options.faster if name != "flex_attention" or family == "bagel"]
        if switches and "failed" not in plain:
            seconds_left = options.limit_seconds - (time.monotonic() - start)
            faster.append(add_speedup(row_of(family, options, switches, seconds_left), plain))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    answer = {
        "question": "how fast does L_RecA train at the published sizes, and how much of the device does that use?",
        "device": name,
        "peak_tflops": None if (peak := peak_flops(name)) is None else peak / 1e12,
        "size": _size(options),
        **environment_info(),
        "families": rows,
        "faster": faster,
    }
    path = options.output or RESULTS / f"gpu_{_slug(name)}.json"
    write_json(path, answer)
    print(f"\n{name}, {answer['size']} sizes; more in {path.name}\n{table([*rows, *faster])}")
    return int(all("failed" in row for row in rows))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small models, as a test of this file")
    about = "options of each family's second row, as in `hardware`; default: all on a GPU, none on a CPU"
    parser.add_argument("--faster", nargs="*", choices=FASTER, help=about)
    parser.add_argument("--inline", action="store_true", help="all in this process, without time limits")
    parser.add_argument("--limit-seconds", type=float, default=LIMIT_SECONDS, help="per family")
    parser.add_argument("--output", type=Path, help="file of the result; default: results/gpu_<device>.json")
    parser.add_argument("--one", choices=FAMILIES, help=argparse.SUPPRESS)  # for the separate processes
    options = parser.parse_args(arguments)
    on_cpu = torch.device(options.device).type == "cpu"
    if on_cpu and not options.tiny:
        parser.error("published sizes take hours on a CPU: add --tiny, or name a GPU")
    if options.faster is None:
        options.faster = [] if on_cpu else list(FASTER)
    return options


def row_of(family: str, options: argparse.Namespace, faster: Sequence[str], limit: float) -> dict[str, Any]:
    """Measure a row, in a separate process unless ``--inline``."""
    row = (
        measure_row(family, options, faster) if options.inline else in_separate_process(family, options, faster, limit)
    )
    print(f"{' '.join([family, *faster])}: {row.get('failed') or 'measured'}", flush=True)
    return row


def add_speedup(row: dict[str, Any], plain: dict[str, Any]) -> dict[str, Any]:
    """Add a row's speed relative to the plain row."""
    if "failed" in row:
        return row
    return {**row, "over_plain": round(row["images_per_second"] / plain["images_per_second"], 3)}


def in_separate_process(
    family: str, options: argparse.Namespace, faster: Sequence[str], limit: float
) -> dict[str, Any]:
    """Measure a row in a separate process, so that GPU errors and lack of memory cannot affect other rows."""
    row: dict[str, Any] = {"family": family, "faster": list(faster)}
    with tempfile.TemporaryDirectory(prefix="reca-gpu-") as folder:
        file = Path(folder) / "row.json"
        words = ["--one", family, "--device", options.device, "--output", str(file)]
        words += [*(["--tiny"] if options.tiny else []), "--faster", *faster]
        command = [sys.executable, "-m", "bench.gpu", *words]
        try:
            process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit)
        except subprocess.TimeoutExpired:
            return {**row, "failed": f"unfinished after {limit:.0f} s"}
        if process.returncode or not file.is_file():
            last = (process.stderr.strip().splitlines() or ["no message"])[-1]
            return {**row, "failed": f"exit status {process.returncode}: {last}"}
        return {**row, **json.loads(file.read_text())}


def measure_row(family: str, options: argparse.Namespace, faster: Sequence[str]) -> dict[str, Any]:
    """Measure a row; failures become its reason."""
    size, device = _size(options), torch.device(options.device)
    row: dict[str, Any] = {"family": family, "model": PUBLISHED[family] if size == "real" else size}
    row["faster"] = list(faster)
    try:
        if family == "bagel":
            shallow, deep = (throughput(family, size, options, faster, layers) for layers in DEPTHS[size])
            row |= extrapolate(shallow, deep, DEPTHS[size], SIZES[family][size]["text"]["num_hidden_layers"])
        else:
            row |= throughput(family, size, options, faster)
    except ModuleNotFoundError as error:
        return {**row, "failed": f"not measured: needs {error.name}"}
    except torch.cuda.OutOfMemoryError:
        return {**row, "failed": "out of memory, even with one image a step"}
    except Exception as error:  # other families can still be measured
        return {**row, "failed": " ".join(f"{type(error).__name__}: {error}".split())[:300]}
    return {**row, **rates(row, device)}


def throughput(
    family: str, size: str, options: argparse.Namespace, faster: Sequence[str], layers: int | None = None
) -> dict[str, Any]:
    """Return seconds, operations and memory of a step, at the largest micro-batch that fits."""
    device = torch.device(options.device)
    batch_size = BATCH[family] if size == "real" else 2
    while True:
        gc.collect()  # an earlier model's tensors; not in the handler, whose traceback references them
        if device.type == "cuda":
            torch.cuda.empty_cache()
        try:
            torch.manual_seed(0)
            return _timed(build(family, size, device, layers), batch_size, device, faster, options.tiny)
        except torch.cuda.OutOfMemoryError:
            if batch_size == 1:
                raise
        batch_size //= 2


def _timed(
    model: UnifiedModel, batch_size: int, device: torch.device, faster: Sequence[str], tiny: bool
) -> dict[str, Any]:
    lengths = model.spec.semantic_tokens, model.spec.target_tokens
    batch = make_batch(model, batch_size, device)
    extraction_result = None
    if model.cacheable and not faster:  # the options change only training
        batches = 2 if tiny else None
        extraction_result = extraction.measure_extraction(model, device, batch_size, PREFETCH, EXTRACTIONS, batches)
    trainer = Trainer(model, autocast_bf16=True)
    if "semantic" in model.cacheable:
        for parameter in model.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.bfloat16()
    flops = flops_of(lambda: trainer.step(batch))  # of the plain step: compiled kernels have no formulas
    if "flex_attention" in faster:
        enable_flex_attention(model, device)
    if "compile" in faster:
        compile_blocks(model)
    for _ in range(WARM_UP):
        trainer.step(batch)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds = [time_call(lambda: trainer.step(batch), device) for _ in range(TIMED)]
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "trained": trainer.trained,
        "micro_batch": batch_size,
        "tokens_per_image": sum(lengths),
        "step_seconds": statistics.median(seconds),
        "step_flops": flops,
        "extraction": extraction_result,
        "memory_gib": torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None,
        "all_step_seconds": [round(value, 5) for value in seconds],
    }


def extrapolate(shallow: dict[str, Any], deep: dict[str, Any], depths: tuple[int, int], layers: int) -> dict[str, Any]:
    """Extrapolate two depths linearly to the full depth.

    Raises:
        ValueError: They were measured with different micro-batches.
    """
    if shallow["micro_batch"] != deep["micro_batch"]:
        raise ValueError(f"the two depths fit with micro-batches of {shallow['micro_batch']} and {deep['micro_batch']}")
    few, many = depths
    keys = [key for key in ("step_seconds", "step_flops", "memory_gib", "parameters", "trained") if deep[key]]
    lines = {key: deep[key] + (layers - many) * (deep[key] - shallow[key]) / (many - few) for key in keys}
    note = f"extrapolated to {layers} layers from {few} and {many}"
    return {**deep, **lines, "note": note, "measured": {str(few): shallow, str(many): deep}}


def rates(row: dict[str, Any], device: torch.device) -> dict[str, float | None]:
    """Compute rates from a step's seconds and operations."""
    images = row["micro_batch"] / row["step_seconds"]
    flops = row["step_flops"] / row["step_seconds"]
    peak = peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    return {
        "images_per_second": round(images, 3),
        "tokens_per_second": round(images * row["tokens_per_image"], 1),
        "tflops": round(flops / 1e12, 3),
        "mfu": None if peak is None else round(flops / peak, 4),
    }


def peak_flops(name: str) -> float | None:
    """Return the stated dense bfloat16 peak of a device; ``None`` if unknown."""
    accelerator = accelerator_name(name)
    return ACCELERATORS[accelerator].peaks["bfloat16"] if accelerator else None


def _size(options: argparse.Namespace) -> str:
    return "tiny" if options.tiny else "real"


def _slug(name: str) -> str:
    """Return the name in ``hardware.forecast_gpu``, by which `reca doctor` finds the result."""
    return accelerator_name(name) or "".join(letter if letter.isalnum() else "_" for letter in name.lower())


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Format rows as Markdown."""
    head = ("family", "model", "trained", "micro-batch", "step s", "images/s", "tokens/s", "TFLOP/s", "MFU", "GiB")
    head += ("extraction", "options", "of plain", "")
    lines = [head, ("---",) * len(head)]
    for row in rows:
        if "failed" in row:
            lines.append((row["family"], row.get("model", ""), *("",) * 9, " ".join(row["faster"]), "", row["failed"]))
            continue
        share = "-" if row["mfu"] is None else f"{row['mfu']:.1%}"
        memory = "-" if row["memory_gib"] is None else f"{row['memory_gib']:.1f}"
        numbers = f"{row['step_seconds']:.4f}", f"{row['images_per_second']:.2f}", f"{row['tokens_per_second']:.0f}"
        sizes = f"{row['trained'] / 1e9:.2f} B", str(row["micro_batch"])
        result = row["extraction"]
        extracted = "-"
        if result is not None:
            extracted = f"{result['images_per_second']:.1f}/s, {result['over_bare']:.0%} of bare"
        speed = f"{row['tflops']:.1f}", share, memory, extracted
        options = " ".join(row["faster"]), f"{row['over_plain']:.2f} x" if "over_plain" in row else ""
        lines.append((row["family"], row["model"], *sizes, *numbers, *speed, *options, row.get("note", "")))
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


if __name__ == "__main__":
    sys.exit(main())
