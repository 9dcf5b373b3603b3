"""How fast does L_RecA train at the published sizes on one GPU, and how much of the GPU does that use?

    make gpu-bench                                            # all five families: under 25 minutes
    python -m bench.gpu --families janus showo
    python -m bench.gpu --faster                              # plain steps only
    python -m bench.gpu --device cpu --tiny --inline          # the same code over small models: a test of it

Weights are random and nothing is fetched. A step is that of the training loop with what the family may cache taken
from memory: the loss under bfloat16 autocast, backward, clipping, fused AdamW. Trained parameters, their gradients and
both moments are float32, frozen ones bfloat16. Harmon, whose encoder trains, encodes images in the step, in float32 as
the loop does; its frozen part, a small autoencoder, stays float32. Reported are medians of the timed steps:

    images/s   micro-batch / seconds of a step
    tokens/s   images/s x (semantic_tokens + target_tokens); words of the template are left out
    TFLOP/s    floating-point operations of a step, forward and backward, as counted in that very step
               (:mod:`tools.memory.flops` has the formulas; gradients of frozen parts are neither computed nor
               counted) / seconds
    MFU        that / the device's stated dense bfloat16 peak (:mod:`tools.memory.accelerators`)
    extraction images/s of `extract`'s own code over JPEGs in memory, float32, and its share of what the encoders alone
               do there (:mod:`bench.extraction`)
    memory     torch.cuda.max_memory_allocated over the timed steps

Each family is measured twice: by plain eager code, the baseline, and with compiled blocks (BAGEL: and FlexAttention), a
row of its own, whose last column has its images/s over the baseline's.

BAGEL with its optimizer fits on no single GPU: two depths are measured, and seconds, operations and memory go on
linearly to 28 layers; its row says so, and is what a GPU with room enough would do. A micro-batch that does not fit
is halved. Every row is a process of its own, both rows of a family share a time limit; one that fails says why.
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
from bench.steps import Trainer, make_batch, seconds_of, surroundings
from reca.models.base import UnifiedModel
from reca.runtime.files import write_json
from reca.training.compile import compile_blocks, enable_flex_attention
from tools.memory.accelerators import ACCELERATORS, accelerator_name
from tools.memory.flops import flops_of

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench/results"
LIMIT_SECONDS = 280
"""Of one family's two rows; five families stay under 25 minutes."""
BATCH = {"bagel": 2, "harmon": 8, "janus": 16, "openuni": 32, "showo": 8}
DEPTHS = {"real": (4, 8), "tiny": (1, 2)}
"""Layers at which BAGEL is measured: with 8, weights and moments take some 45 GiB."""
WARM_UP, TIMED = 2, 7
READ_AHEAD, EXTRACTIONS = 8, 2
"""Batches that extraction reads early, as conf/hardware/gpu.yaml has it, and how often it is measured."""
FASTER = ("compile", "flex_attention")
"""What the second row of a family has switched on; the first one is plain eager code, the baseline."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, write the result."""
    options = parse(arguments)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("bench.gpu: torch finds no GPU here, so nothing was measured (--device cpu --tiny tests the code)")
        return 2
    if options.one:
        write_json(options.output, measured(options.one, options, options.faster))
        return 0
    rows, faster = list[dict[str, Any]](), list[dict[str, Any]]()
    for family in options.families:
        began = time.monotonic()
        rows.append(plain := row_of(family, options, (), options.limit_seconds))
        switches = [name for name in options.faster if name != "flex_attention" or family == "bagel"]
        if switches and "failed" not in plain:
            left = options.limit_seconds - (time.monotonic() - began)
            faster.append(compared(row_of(family, options, switches, left), plain))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    answer = {
        "question": "how fast does L_RecA train at the published sizes, and how much of the device does that use?",
        "device": name,
        "peak_tflops": None if (peak := peak_of(name)) is None else peak / 1e12,
        "size": _size(options),
        **surroundings(),
        "families": rows,
        "faster": faster,
    }
    path = options.output or RESULTS / f"gpu_{_slug(name)}.json"
    write_json(path, answer)
    print(f"\n{name}, {answer['size']} sizes; {path.name} holds more\n{table([*rows, *faster])}")
    return int(all("failed" in row for row in rows))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small models: a test of this file, no measurement")
    about = "switched on in each family's second row, as in `hardware`; default: all on a GPU, nothing on a CPU"
    parser.add_argument("--faster", nargs="*", choices=FASTER, help=about)
    parser.add_argument("--inline", action="store_true", help="all in this process, without time limits")
    parser.add_argument("--limit-seconds", type=float, default=LIMIT_SECONDS, help="of each family")
    parser.add_argument("--output", type=Path, help="where the answer goes; default: results/gpu_<device>.json")
    parser.add_argument("--one", choices=FAMILIES, help=argparse.SUPPRESS)  # what the processes are started with
    options = parser.parse_args(arguments)
    on_cpu = torch.device(options.device).type == "cpu"
    if on_cpu and not options.tiny:
        parser.error("published sizes take hours on a CPU: add --tiny, or name a GPU")
    if options.faster is None:
        options.faster = [] if on_cpu else list(FASTER)
    return options


def row_of(family: str, options: argparse.Namespace, faster: Sequence[str], limit: float) -> dict[str, Any]:
    """One row, in a process of its own unless the options say otherwise."""
    row = measured(family, options, faster) if options.inline else in_own_process(family, options, faster, limit)
    print(f"{' '.join([family, *faster])}: {row.get('failed') or 'measured'}", flush=True)
    return row


def compared(row: dict[str, Any], plain: dict[str, Any]) -> dict[str, Any]:
    """A family's second row, with how many times as fast as the first one it is."""
    if "failed" in row:
        return row
    return {**row, "over_plain": round(row["images_per_second"] / plain["images_per_second"], 3)}


def in_own_process(family: str, options: argparse.Namespace, faster: Sequence[str], limit: float) -> dict[str, Any]:
    """A row, whatever becomes of it: GPU errors and lack of memory stay in the process they happen in."""
    row: dict[str, Any] = {"family": family, "faster": list(faster)}
    with tempfile.TemporaryDirectory(prefix="reca-gpu-") as folder:
        place = Path(folder) / "row.json"
        words = ["--one", family, "--device", options.device, "--output", str(place)]
        words += [*(["--tiny"] if options.tiny else []), "--faster", *faster]
        command = [sys.executable, "-m", "bench.gpu", *words]
        try:
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit)
        except subprocess.TimeoutExpired:
            return {**row, "failed": f"not done after {limit:.0f} s"}
        if done.returncode or not place.is_file():
            last = (done.stderr.strip().splitlines() or ["nothing was said"])[-1]
            return {**row, "failed": f"exit status {done.returncode}: {last}"}
        return {**row, **json.loads(place.read_text())}


def measured(family: str, options: argparse.Namespace, faster: Sequence[str]) -> dict[str, Any]:
    """One row; what goes wrong is said in it."""
    size, device = _size(options), torch.device(options.device)
    row: dict[str, Any] = {"family": family, "model": PUBLISHED[family] if size == "real" else size}
    row["faster"] = list(faster)
    try:
        if family == "bagel":
            shallow, deep = (throughput(family, size, options, faster, layers) for layers in DEPTHS[size])
            row |= extrapolated(shallow, deep, DEPTHS[size], SIZES[family][size]["text"]["num_hidden_layers"])
        else:
            row |= throughput(family, size, options, faster)
    except ModuleNotFoundError as error:
        return {**row, "failed": f"not measured: needs {error.name}"}
    except torch.cuda.OutOfMemoryError:
        return {**row, "failed": "out of memory, even with one image a step"}
    except Exception as error:  # the other families have an answer to give
        return {**row, "failed": " ".join(f"{type(error).__name__}: {error}".split())[:300]}
    return {**row, **rates(row, device)}


def throughput(
    family: str, size: str, options: argparse.Namespace, faster: Sequence[str], layers: int | None = None
) -> dict[str, Any]:
    """Seconds, operations and memory of a step, at the largest micro-batch of those tried that fits."""
    device = torch.device(options.device)
    batch_size = BATCH[family] if size == "real" else 2
    while True:
        gc.collect()  # what an earlier model left; not in the handler, whose traceback holds on to tensors
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
    extracted = None
    if model.cacheable and not faster:  # which changes training alone
        batches = 2 if tiny else None
        extracted = extraction.measured(model, device, batch_size, READ_AHEAD, EXTRACTIONS, batches)
    trainer = Trainer(model, lower=True)
    if "semantic" in model.cacheable:
        for parameter in model.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.bfloat16()
    flops = flops_of(lambda: trainer.step(batch))  # of the plain step: compiled code calls what no table knows
    if "flex_attention" in faster:
        enable_flex_attention(model, device)
    if "compile" in faster:
        compile_blocks(model)
    for _ in range(WARM_UP):
        trainer.step(batch)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds = [seconds_of(lambda: trainer.step(batch), device) for _ in range(TIMED)]
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "trained": trainer.trained,
        "micro_batch": batch_size,
        "tokens_per_image": sum(lengths),
        "step_seconds": statistics.median(seconds),
        "step_flops": flops,
        "extraction": extracted,
        "memory_gib": torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None,
        "all_step_seconds": [round(one, 5) for one in seconds],
    }


def extrapolated(shallow: dict[str, Any], deep: dict[str, Any], depths: tuple[int, int], layers: int) -> dict[str, Any]:
    """A line through two depths, at the full depth.

    Raises:
        ValueError: Both were not measured with one micro-batch.
    """
    if shallow["micro_batch"] != deep["micro_batch"]:
        raise ValueError(f"the two depths fit with micro-batches of {shallow['micro_batch']} and {deep['micro_batch']}")
    few, many = depths
    keys = [key for key in ("step_seconds", "step_flops", "memory_gib", "parameters", "trained") if deep[key]]
    lines = {key: deep[key] + (layers - many) * (deep[key] - shallow[key]) / (many - few) for key in keys}
    note = f"extrapolated to {layers} layers from {few} and {many}"
    return {**deep, **lines, "note": note, "measured": {str(few): shallow, str(many): deep}}


def rates(row: dict[str, Any], device: torch.device) -> dict[str, float | None]:
    """What follows from a step's seconds and operations."""
    images = row["micro_batch"] / row["step_seconds"]
    flops = row["step_flops"] / row["step_seconds"]
    peak = peak_of(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    return {
        "images_per_second": round(images, 3),
        "tokens_per_second": round(images * row["tokens_per_image"], 1),
        "tflops": round(flops / 1e12, 3),
        "mfu": None if peak is None else round(flops / peak, 4),
    }


def peak_of(name: str) -> float | None:
    """The stated dense bfloat16 peak of a device; ``None``: we have none."""
    known = accelerator_name(name)
    return ACCELERATORS[known].peaks["bfloat16"] if known else None


def _size(options: argparse.Namespace) -> str:
    return "tiny" if options.tiny else "real"


def _slug(name: str) -> str:
    """As ``hardware.forecast_gpu`` calls it, by which `reca doctor` finds the result."""
    return accelerator_name(name) or "".join(letter if letter.isalnum() else "_" for letter in name.lower())


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown, one row a family."""
    head = ("family", "model", "trained", "micro-batch", "step s", "images/s", "tokens/s", "TFLOP/s", "MFU", "GiB")
    head += ("extraction", "switched on", "of plain", "")
    lines = [head, ("---",) * len(head)]
    for row in rows:
        if "failed" in row:
            lines.append((row["family"], row.get("model", ""), *("",) * 9, " ".join(row["faster"]), "", row["failed"]))
            continue
        share = "-" if row["mfu"] is None else f"{row['mfu']:.1%}"
        memory = "-" if row["memory_gib"] is None else f"{row['memory_gib']:.1f}"
        numbers = f"{row['step_seconds']:.4f}", f"{row['images_per_second']:.2f}", f"{row['tokens_per_second']:.0f}"
        sizes = f"{row['trained'] / 1e9:.2f} B", str(row["micro_batch"])
        one = row["extraction"]
        extracted = "-" if one is None else f"{one['images_per_second']:.1f}/s, {one['over_bare']:.0%} of bare"
        speed = f"{row['tflops']:.1f}", share, memory, extracted
        switched = " ".join(row["faster"]), f"{row['over_plain']:.2f} x" if "over_plain" in row else ""
        lines.append((row["family"], row["model"], *sizes, *numbers, *speed, *switched, row.get("note", "")))
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


if __name__ == "__main__":
    sys.exit(main())
