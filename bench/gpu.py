"""How fast does L_RecA train at the published sizes on one GPU, and how much of the GPU does that use?

    make gpu-bench                                            # all five families: under 25 minutes
    python -m bench.gpu --families janus showo
    python -m bench.gpu --compile --flex-attention --output ...     # against the plain eager step, the default
    python -m bench.gpu --device cpu --tiny --inline          # the same code over small models: a test of it

Weights are random and nothing is fetched. A step is that of the training loop with what the family may cache taken
from memory: the loss under bfloat16 autocast, backward, clipping, fused AdamW. Trained parameters, their gradients and
both moments are float32, frozen ones bfloat16. Harmon, whose encoder trains, encodes images in the step, in float32 as
the loop does; its frozen part, a small autoencoder, stays float32. Reported are medians of the timed steps:

    images/s   micro-batch / seconds of a step
    tokens/s   images/s x (semantic_tokens + target_tokens); words of the template are left out
    TFLOP/s    floating-point operations of a step, forward and backward, as counted in that very step
               (:mod:`reca.prediction.flops` has the formulas; gradients of frozen parts are neither computed nor
               counted) / seconds
    MFU        that / the device's stated dense bfloat16 peak (:mod:`reca.prediction.accelerators`)
    extraction images/s of `extract`'s own code over JPEGs in memory, float32, and its share of what the encoders alone
               do there (:mod:`bench.extraction`)
    memory     torch.cuda.max_memory_allocated over the timed steps

BAGEL with its optimizer fits on no single GPU: two depths are measured, and seconds, operations and memory go on
linearly to 28 layers; its row says so, and is what a GPU with room enough would do. A micro-batch that does not fit
is halved. Every family is a process of its own with a time limit; one that fails is a row that says why.
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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench import extraction
from bench.models import build
from bench.sizes import FAMILIES, PUBLISHED, SIZES
from bench.steps import Trainer, make_batch, seconds_of, surroundings
from reca.files import write_json
from reca.models.base import UnifiedModel
from reca.prediction.accelerators import ACCELERATORS, known_as
from reca.prediction.flops import flops_of
from reca.training.speed import attend_by_blocks, compile_blocks

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench/results"
LIMIT_SECONDS = 280
"""Of one family; five of them stay under 25 minutes."""
BATCH = {"bagel": 2, "harmon": 8, "janus": 16, "openuni": 32, "showo": 8}
DEPTHS = {"real": (4, 8), "tiny": (1, 2)}
"""Layers at which BAGEL is measured: with 8, weights and moments take some 45 GiB."""
WARM_UP, TIMED = 2, 7
READ_AHEAD, EXTRACTIONS = 8, 2
"""Batches that extraction reads early, as conf/hardware/gpu.yaml has it, and how often it is measured."""
FASTER = ("compile", "flex_attention")
"""What may be switched on; without both the step is plain eager code, the baseline."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, write the result."""
    options = parse(arguments)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("bench.gpu: torch finds no GPU here, so nothing was measured (--device cpu --tiny tests the code)")
        return 2
    if options.one:
        write_json(options.output, measured(options.one, options))
        return 0
    rows = []
    for family in options.families:
        row = measured(family, options) if options.inline else in_own_process(family, options)
        rows.append(row)
        print(f"{family}: {row.get('failed') or 'measured'}", flush=True)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    answer = {
        "question": "how fast does L_RecA train at the published sizes, and how much of the device does that use?",
        "device": name,
        "peak_tflops": None if (peak := peak_of(name)) is None else peak / 1e12,
        "size": _size(options),
        **surroundings(),
        "families": rows,
    }
    path = options.output or RESULTS / f"gpu_{_slug(name)}.json"
    write_json(path, answer)
    print(f"\n{name}, {answer['size']} sizes; {path.name} holds more\n{table(rows)}")
    return int(all("failed" in row for row in rows))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small models: a test of this file, no measurement")
    parser.add_argument("--compile", action="store_true", help="compile the blocks, as hardware.compile does")
    parser.add_argument("--flex-attention", action="store_true", help="of BAGEL, as hardware.flex_attention does")
    parser.add_argument("--inline", action="store_true", help="all in this process, without time limits")
    parser.add_argument("--limit-seconds", type=float, default=LIMIT_SECONDS, help="of each family")
    parser.add_argument("--output", type=Path, help="where the answer goes; default: results/gpu_<device>.json")
    parser.add_argument("--one", choices=FAMILIES, help=argparse.SUPPRESS)  # what the processes are started with
    options = parser.parse_args(arguments)
    if torch.device(options.device).type == "cpu" and not options.tiny:
        parser.error("published sizes take hours on a CPU: add --tiny, or name a GPU")
    return options


def in_own_process(family: str, options: argparse.Namespace) -> dict[str, Any]:
    """One family's row, whatever becomes of it: GPU errors and lack of memory stay in the process they happen in."""
    with tempfile.TemporaryDirectory(prefix="reca-gpu-") as folder:
        place = Path(folder) / "row.json"
        words = ["--one", family, "--device", options.device, "--output", str(place)]
        words += [f"--{word.replace('_', '-')}" for word in ("tiny", *FASTER) if getattr(options, word)]
        command = [sys.executable, "-m", "bench.gpu", *words]
        try:
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=options.limit_seconds)
        except subprocess.TimeoutExpired:
            return {"family": family, "failed": f"not done after {options.limit_seconds:g} s"}
        if done.returncode or not place.is_file():
            last = (done.stderr.strip().splitlines() or ["nothing was said"])[-1]
            return {"family": family, "failed": f"exit status {done.returncode}: {last}"}
        row: dict[str, Any] = json.loads(place.read_text())
        return row


def measured(family: str, options: argparse.Namespace) -> dict[str, Any]:
    """One family's row; what goes wrong is said in it."""
    size, device = _size(options), torch.device(options.device)
    row: dict[str, Any] = {"family": family, "model": PUBLISHED[family] if size == "real" else size}
    row["faster"] = [word for word in FASTER if getattr(options, word)]
    try:
        if family == "bagel":
            shallow, deep = (throughput(family, size, options, layers) for layers in DEPTHS[size])
            row |= extrapolated(shallow, deep, DEPTHS[size], SIZES[family][size]["text"]["num_hidden_layers"])
        else:
            row |= throughput(family, size, options)
    except ModuleNotFoundError as error:
        return {**row, "failed": f"not measured: needs {error.name}"}
    except torch.cuda.OutOfMemoryError:
        return {**row, "failed": "out of memory, even with one image a step"}
    except Exception as error:  # the other families have an answer to give
        return {**row, "failed": " ".join(f"{type(error).__name__}: {error}".split())[:300]}
    return {**row, **rates(row, device)}


def throughput(family: str, size: str, options: argparse.Namespace, layers: int | None = None) -> dict[str, Any]:
    """Seconds, operations and memory of a step, at the largest micro-batch of those tried that fits."""
    device = torch.device(options.device)
    batch_size = BATCH[family] if size == "real" else 2
    while True:
        gc.collect()  # what an earlier model left; not in the handler, whose traceback holds on to tensors
        if device.type == "cuda":
            torch.cuda.empty_cache()
        try:
            torch.manual_seed(0)
            return _timed(build(family, size, device, layers), batch_size, device, options)
        except torch.cuda.OutOfMemoryError:
            if batch_size == 1:
                raise
        batch_size //= 2


def _timed(model: UnifiedModel, batch_size: int, device: torch.device, options: argparse.Namespace) -> dict[str, Any]:
    lengths = model.spec.semantic_tokens, model.spec.target_tokens
    batch = make_batch(model, batch_size, device)
    extracted = None
    if model.cacheable:
        batches = 2 if options.tiny else None
        extracted = extraction.measured(model, device, batch_size, READ_AHEAD, EXTRACTIONS, batches)
    trainer = Trainer(model, lower=True)
    if "semantic" in model.cacheable:
        for parameter in model.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.bfloat16()
    flops = flops_of(lambda: trainer.step(batch))  # of the plain step: compiled code calls what no table knows
    if options.flex_attention and model.family == "bagel":
        attend_by_blocks(model, device)
    if options.compile:
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
    known = known_as(name)
    return ACCELERATORS[known].peaks["bfloat16"] if known else None


def _size(options: argparse.Namespace) -> str:
    return "tiny" if options.tiny else "real"


def _slug(name: str) -> str:
    """As ``hardware.accelerator`` calls it, by which `reca doctor` finds the result."""
    return known_as(name) or "".join(letter if letter.isalnum() else "_" for letter in name.lower())


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown, one row a family."""
    head = ("family", "model", "trained", "micro-batch", "step s", "images/s", "tokens/s", "TFLOP/s", "MFU", "GiB")
    head += ("extraction", "")
    lines = [head, ("---",) * len(head)]
    for row in rows:
        if "failed" in row:
            lines.append((row["family"], row.get("model", ""), *("",) * 9, row["failed"]))
            continue
        share = "-" if row["mfu"] is None else f"{row['mfu']:.1%}"
        memory = "-" if row["memory_gib"] is None else f"{row['memory_gib']:.1f}"
        numbers = f"{row['step_seconds']:.4f}", f"{row['images_per_second']:.2f}", f"{row['tokens_per_second']:.0f}"
        sizes = f"{row['trained'] / 1e9:.2f} B", str(row["micro_batch"])
        one = row["extraction"]
        extracted = "-" if one is None else f"{one['images_per_second']:.1f}/s, {one['over_bare']:.0%} of bare"
        speed = f"{row['tflops']:.1f}", share, memory, extracted
        lines.append((row["family"], row["model"], *sizes, *numbers, *speed, row.get("note", "")))
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


if __name__ == "__main__":
    sys.exit(main())
