"""Does a GPU give the CPU's numbers? Parity replays on it, and losses and gradients of small models on both.

    make gpu-check
    python -m bench.gpu_check --device cpu    # the same code without a GPU: a test of it

All in float32, without TF32:

    parity    every family's recording of the official code (tests/parity/fixtures), computed on the device; tolerances
              are ten times those on a CPU, tokens and codes must be equal
    losses    L_RecA, text to image and understanding of a small random model, relative to the CPU's: 1e-4
    gradients of those losses: the largest difference in a parameter, relative to the largest number in that
              parameter's gradient (or to a thousandth of the largest of all, for those that are nearly zero): 1e-3
    faster    L_RecA and its gradients with compiled blocks, and of BAGEL with FlexAttention
    images    drawn from one seed: shapes, and numbers that are finite (a code drawn at a draw's very edge may differ)

What cannot be imported here is said to be not compared, and why. Exit status: 0 if something was compared and nothing
differs, 1 if something differs, 2 without a GPU or if nothing was compared.
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
from bench.steps import Batch, make_batch
from reca.models.base import Dialogue, Loss, Sampling, Semantic, Target, UnifiedModel
from reca.runtime.seeding import SampleRng
from reca.training.compile import compile_blocks, enable_flex_attention

FIXTURES = Path(__file__).parents[1] / "tests/parity/fixtures"
CPU = torch.device("cpu")
LOSS, GRADIENT = 1e-4, 1e-3
NEARLY_ZERO = 1e-3
PROMPTS = ["a photo of a red circle", "two squares"]


@dataclass(frozen=True)
class Verdict:
    """One line of the answer."""

    family: str
    what: str
    verdict: str
    """"ok", "differs" or "not compared"."""
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.family:8} {self.what:24} {self.verdict}{': ' if self.detail else ''}{self.detail}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Check everything, print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    options = parser.parse_args(arguments)
    if options.device.type == "cuda" and not torch.cuda.is_available():
        print("bench.gpu_check: torch finds no GPU here, so nothing was compared (--device cpu tests the code)")
        return 2
    # Before the first matrix product: torch's deterministic algorithms want it, and the replays ask for those.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    verdicts = []
    for family in options.families:
        for check in (parity, small_model, faster_kernels):
            for verdict in explained(check, family, options.device):
                print(verdict, flush=True)
                verdicts.append(verdict.verdict)
    counts = {name: verdicts.count(name) for name in ("ok", "differs", "not compared")}
    print(", ".join(f"{number} {name}" for name, number in counts.items()))
    return 1 if counts["differs"] else 0 if counts["ok"] else 2


def explained(
    check: Callable[[str, torch.device], Iterator[Verdict]], family: str, device: torch.device
) -> Iterator[Verdict]:
    """A check's verdicts; what it lacks or trips over is one more."""
    try:
        yield from check(family, device)
    except ModuleNotFoundError as error:
        yield Verdict(family, check.__name__, "not compared", f"needs {error.name}")
    except Exception as error:  # the other families have an answer to give
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        yield Verdict(family, check.__name__, "differs", reason)


def parity(family: str, device: torch.device) -> Iterator[Verdict]:
    """The family's recording: what differs and what was not compared by reasons, what agrees as one number."""
    rows = import_module("tests.parity.replay").replay(family, FIXTURES / family, device)
    groups: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.verdict != "ok":
            reason = row.why or f"relative error {row.error:.1e}, allowed {row.tolerance:.0e}"
            groups.setdefault((row.verdict, reason), []).append(row.key)
    for (verdict, reason), keys in groups.items():
        several = f", and {len(keys) - 1} others" if len(keys) > 1 else ""
        yield Verdict(family, "parity", verdict, f"{reason} ({keys[0]}{several})")
    if agreed := [row for row in rows if row.verdict == "ok"]:
        worst = max(agreed, key=lambda row: (row.error or 0.0) / (row.tolerance or 1.0))
        yield Verdict(family, "parity", "ok", f"{len(agreed)} numbers, worst error {worst.error:.1e} ({worst.key})")


def small_model(family: str, device: torch.device) -> Iterator[Verdict]:
    """Losses, gradients and images of one random model on both devices."""
    torch.manual_seed(0)
    here = build(family, "tiny", CPU)
    batch, there = make_batch(here, len(PROMPTS), CPU), copy.deepcopy(here).to(device)
    with full_float32():
        for name in ("reconstruction", "text_to_image", "understanding"):
            yield from same_loss(family, name, (here, there), batch, device)
        sampling = Sampling(2.0, num_steps=3)
        ours, theirs = (model.generate(PROMPTS, sampling, SampleRng(batch.seeds)).cpu() for model in (here, there))
    fine = ours.shape == theirs.shape and bool(torch.isfinite(theirs).all())
    difference = (
        f"largest difference {float((ours - theirs).abs().max()):.1e}" if fine else "wrong shape, or not finite"
    )
    yield Verdict(family, "images", "ok" if fine else "differs", difference)


def faster_kernels(family: str, device: torch.device) -> Iterator[Verdict]:
    """The same with compiled blocks, and of BAGEL with FlexAttention, on the device; the CPU computes as ever."""
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
    family: str, name: str, models: tuple[UnifiedModel, UnifiedModel], batch: Batch, device: torch.device
) -> Iterator[Verdict]:
    """One loss and its gradients on both devices."""
    values, gradients = [], []
    for model, place in zip(models, (CPU, device), strict=True):
        model.zero_grad()
        value = loss_of(name, model, batch, place).value
        if value.requires_grad:  # questions teach nothing where understanding is frozen
            value.backward()
        values.append(float(value.detach()))
        gradients.append({key: p.grad.cpu() for key, p in model.named_parameters() if p.grad is not None})
    error = abs(values[1] - values[0]) / abs(values[0])
    yield Verdict(family, f"{name} loss", _verdict(error, LOSS), f"relative error {error:.1e}")
    if gradients[0] or gradients[1]:
        error, where = gradient_error(*gradients)
        yield Verdict(family, f"{name} gradients", _verdict(error, GRADIENT), f"relative error {error:.1e} ({where})")


def _verdict(error: float, tolerance: float) -> str:
    return "ok" if error <= tolerance else "differs"  # not a number is not ok


def loss_of(name: str, model: UnifiedModel, batch: Batch, place: torch.device) -> Loss:
    """A loss; targets are the CPU's on both devices, since a code at the edge may be rounded to either side."""
    seen, target = batch.seen.to(place), Target(batch.target.values.to(place))
    if name == "understanding":
        return model.understanding_loss(seen, [Dialogue("what color is it", "red")] * len(seen), SampleRng(batch.seeds))
    if name == "text_to_image":
        return model.text_to_image_loss(PROMPTS, target, SampleRng(batch.seeds))
    semantic: Semantic = model.encode_semantic(seen)
    return model.reconstruction_loss(semantic, batch.prompts, target, SampleRng(batch.seeds))


def gradient_error(ours: dict[str, Any], theirs: dict[str, Any]) -> tuple[float, str]:
    """The largest relative difference, and the parameter that has it."""
    if ours.keys() != theirs.keys():
        return float("inf"), f"only one device reaches {min(ours.keys() ^ theirs.keys())}"
    floor = NEARLY_ZERO * max(float(gradient.abs().max()) for gradient in ours.values())
    errors = {
        name: float((theirs[name] - gradient).abs().max()) / max(float(gradient.abs().max()), floor, 1e-30)
        for name, gradient in ours.items()
    }
    where = max(errors, key=lambda name: math.inf if math.isnan(errors[name]) else errors[name])
    return errors[where], where


if __name__ == "__main__":
    sys.exit(main())
