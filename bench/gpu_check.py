"""Agreement of a GPU with the CPU: parity replays on the GPU, and losses and gradients of small models on both.

    make gpu-check
    python -m bench.gpu_check --device cpu    # the same code without a GPU, as a test

All in float32, without TF32:

    parity    every family's recording of the official code (tests/parity/fixtures), computed on the device; tolerances
              are ten times those on a CPU, tokens and codes must be equal
    losses    L_RecA, text to image and understanding of a small random model, relative to the CPU's: 1e-4
    gradients of the losses: the largest difference in a parameter, relative to the largest value in its gradient
              (or to a thousandth of the largest value of all parameters, if that is more): 1e-3
    faster    L_RecA and its gradients with compiled blocks, and of BAGEL with FlexAttention
    images    generated from one seed: shapes and finite values (a code at the edge of a random draw may differ)

Checks with missing packages are reported as not compared. Exit status: 0 if all comparisons agree, 1 if any differs, 2
without a GPU or without any comparison.
"""

import argparse
import copy
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from bench.models import build, full_float32
from bench.sizes import FAMILIES
from bench.steps import BenchBatch, make_batch
from reca.models.base import Dialogue, Loss, Semantic, Target, UnifiedModel
from reca.models.sampling import Sampling
from reca.runtime.seeding import SampleRng
from reca.training.compile import compile_blocks, enable_flex_attention

FIXTURES = Path(__file__).parents[1] / "tests/parity/fixtures"
CPU = torch.device("cpu")
LOSS, GRADIENT = 1e-4, 1e-3
NEARLY_ZERO = 1e-3
PROMPTS = ["a photo of a red circle", "two squares"]


@dataclass(frozen=True)
class CheckResult:
    """The outcome of a check."""

    family: str
    what: str
    verdict: str
    """"ok", "differs" or "not compared"."""
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.family:8} {self.what:24} {self.verdict}{': ' if self.detail else ''}{self.detail}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all checks and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    options = parser.parse_args(arguments)
    if options.device.type == "cuda" and not torch.cuda.is_available():
        print("bench.gpu_check: torch finds no GPU here, so there is no comparison (--device cpu tests the code)")
        return 2
    # Before the first matrix product: torch's deterministic algorithms require it, and the replays use those.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    verdicts = []
    for family in options.families:
        for check in (parity, small_model, faster_kernels):
            for verdict in run_check(check, family, options.device):
                print(verdict, flush=True)
                verdicts.append(verdict.verdict)
    counts = {name: verdicts.count(name) for name in ("ok", "differs", "not compared")}
    print(", ".join(f"{number} {name}" for name, number in counts.items()))
    return 1 if counts["differs"] else 0 if counts["ok"] else 2


def run_check(
    check: Callable[[str, torch.device], Iterator[CheckResult]], family: str, device: torch.device
) -> Iterator[CheckResult]:
    """Yield a check's results; an exception becomes another result."""
    try:
        yield from check(family, device)
    except ModuleNotFoundError as error:
        yield CheckResult(family, check.__name__, "not compared", f"needs {error.name}")
    except Exception as error:  # other families can still be compared
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        yield CheckResult(family, check.__name__, "differs", reason)


def parity(family: str, device: torch.device) -> Iterator[CheckResult]:
    """Replay the family's recording; differences are grouped by reason, agreements are counted."""
    rows = import_module("tests.parity.replay").replay(family, FIXTURES / family, device)
    groups: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.verdict != "ok":
            reason = row.why or f"relative error {row.error:.1e}, allowed {row.tolerance:.0e}"
            groups.setdefault((row.verdict, reason), []).append(row.key)
    for (verdict, reason), keys in groups.items():
        others_text = f", and {len(keys) - 1} others" if len(keys) > 1 else ""
        yield CheckResult(family, "parity", verdict, f"{reason} ({keys[0]}{others_text})")
    if agreed := [row for row in rows if row.verdict == "ok"]:
        worst = max(agreed, key=lambda row: (row.error or 0.0) / (row.tolerance or 1.0))
        yield CheckResult(family, "parity", "ok", f"{len(agreed)} numbers, worst error {worst.error:.1e} ({worst.key})")


def small_model(family: str, device: torch.device) -> Iterator[CheckResult]:
    """Compare losses, gradients and images of a random model on both devices."""
    torch.manual_seed(0)
    here = build(family, "tiny", CPU)
    batch, there = make_batch(here, len(PROMPTS), CPU), copy.deepcopy(here).to(device)
    with full_float32():
        for name in ("reconstruction", "text_to_image", "understanding"):
            yield from same_loss(family, name, (here, there), batch, device)
        sampling = Sampling(2.0, num_steps=3)
        ours, reference = (model.generate(PROMPTS, sampling, SampleRng(batch.seeds)).cpu() for model in (here, there))
    valid = ours.shape == reference.shape and bool(torch.isfinite(reference).all())
    difference = (
        f"largest difference {float((ours - reference).abs().max()):.1e}" if valid else "wrong shape, or not finite"
    )
    yield CheckResult(family, "images", "ok" if valid else "differs", difference)


def faster_kernels(family: str, device: torch.device) -> Iterator[CheckResult]:
    """Compare compiled blocks, and BAGEL's FlexAttention, on the device with plain code on the CPU."""
    if device.type == "cpu":
        return  # its compiler takes minutes, and FlexAttention has no backward pass there
    torch.manual_seed(0)
    here = build(family, "tiny", CPU)
    batch = make_batch(here, len(PROMPTS), CPU)
    ways: dict[str, Callable[[UnifiedModel], None]] = {"compiled": compile_blocks}
    if family == "bagel":
        ways["FlexAttention"] = partial(enable_flex_attention, device=device)
    for name, change in ways.items():
        there = copy.deepcopy(here).to(device)
        change(there)
        with full_float32():
            for verdict in same_loss(family, "reconstruction", (here, there), batch, device):
                yield replace(verdict, what=f"{verdict.what}, {name}")


def same_loss(
    family: str, name: str, models: tuple[UnifiedModel, UnifiedModel], batch: BenchBatch, device: torch.device
) -> Iterator[CheckResult]:
    """Compare a loss and its gradients on both devices."""
    values, gradients = [], []
    for model, target_device in zip(models, (CPU, device), strict=True):
        model.zero_grad()
        value = loss_of(name, model, batch, target_device).value
        if value.requires_grad:  # false for questions where understanding is frozen
            value.backward()
        values.append(float(value.detach()))
        gradients.append({key: p.grad.cpu() for key, p in model.named_parameters() if p.grad is not None})
    error = abs(values[1] - values[0]) / abs(values[0])
    yield CheckResult(family, f"{name} loss", _verdict(error, LOSS), f"relative error {error:.1e}")
    if gradients[0] or gradients[1]:
        error, where = gradient_error(*gradients)
        yield CheckResult(
            family, f"{name} gradients", _verdict(error, GRADIENT), f"relative error {error:.1e} ({where})"
        )


def _verdict(error: float, tolerance: float) -> str:
    return "ok" if error <= tolerance else "differs"  # NaN is not ok


def loss_of(name: str, model: UnifiedModel, batch: BenchBatch, device: torch.device) -> Loss:
    """Compute a loss; targets are the CPU's on both devices, because a code at an edge may round either way."""
    images, target = batch.condition.to(device), Target(batch.target.values.to(device))
    if name == "understanding":
        return model.understanding_loss(
            images, [Dialogue("what color is it", "red")] * len(images), SampleRng(batch.seeds)
        )
    if name == "text_to_image":
        return model.text_to_image_loss(PROMPTS, target, SampleRng(batch.seeds))
    semantic: Semantic = model.encode_semantic(images)
    return model.reconstruction_loss(semantic, batch.prompts, target, SampleRng(batch.seeds))


def gradient_error(ours: dict[str, Any], reference: dict[str, Any]) -> tuple[float, str]:
    """Return the largest relative difference and its parameter."""
    if ours.keys() != reference.keys():
        return float("inf"), f"only one device reaches {min(ours.keys() ^ reference.keys())}"
    floor = NEARLY_ZERO * max(float(gradient.abs().max()) for gradient in ours.values())
    errors = {
        name: float((reference[name] - gradient).abs().max()) / max(float(gradient.abs().max()), floor, 1e-30)
        for name, gradient in ours.items()
    }
    where = max(errors, key=lambda name: math.inf if math.isnan(errors[name]) else errors[name])
    return errors[where], where


if __name__ == "__main__":
    sys.exit(main())
