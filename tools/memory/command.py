"""``reca doctor KEY=VALUE …``: print a forecast."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from reca.config import compose
from tools.memory.forecast import USABLE_FRACTION, Forecast, forecast


def predict(overrides: Sequence[str], root: Path, as_json: bool = False) -> int:
    """Print what the run of these overrides would take.

    Returns:
        0, or 1 when it does not fit.
    """
    found = forecast(compose(overrides), root)
    print(json.dumps(as_plain(found), indent=2) if as_json else "\n".join(lines(found)))
    return int(found.fits is False)


def as_plain(found: Forecast) -> dict[str, object]:
    """For programs: bytes, seconds, US dollars; null where nothing is predicted."""
    values = asdict(found)
    values["step"]["peak"] = found.step.peak
    return values


def lines(found: Forecast) -> Iterator[str]:
    """For people. GB are 10^9 bytes."""
    step, device = found.step, found.device or "a GPU that is not named"
    yield f"{found.model} (sizes {found.sizes}) on {found.devices} x {device}"
    yield _row("parameters", f"{_count(step.parameters)}, of which {_count(step.trained)} are trained")
    yield _row("weights", _gigabytes(step.weights) + " a device")
    yield _row("gradients", _gigabytes(step.gradients))
    yield _row("moments", _gigabytes(step.moments))
    yield _row("activations", f"{_gigabytes(step.activations)}, most in: {step.phase}")
    yield _row("together", f"{_gigabytes(step.peak)}{_judgement(found)}")
    yield _row("a step", f"{step.images} samples, {step.tokens:,} tokens, {step.flops / 1e12:,.4g} TFLOP")
    yield _row("its time", _duration(found.step_seconds))
    yield _row("training", f"{found.steps:,} steps, {_duration(found.train_seconds)}")
    too_much = "" if _fits(found, step.extract_peak) else ", which DOES NOT FIT"
    yield _row("extraction", f"{_gigabytes(step.extract_peak)}{too_much}; {_duration(found.extract_seconds)}")
    yield _row("evaluation", "not predicted: drawing and answering are not bound by operations")
    if found.device_hours is not None:
        price = "no hardware.price_per_hour is set" if found.dollars is None else f"$ {found.dollars:,.2f}"
        yield _row("cost", f"{found.device_hours:,.2f} device-hours of training and extraction; {price}")
    yield from (f"assumed: {assumption}" for assumption in found.assumptions)
    yield from (f"change: {change}" for change in found.changes)


def _row(name: str, value: str) -> str:
    return f"  {name:<12}{value}"


def _judgement(found: Forecast) -> str:
    if found.capacity is None:
        return "; name a device to compare it with, hardware.forecast_gpu=h100"
    room = f"of {found.capacity / 1e9:.1f} GB, {USABLE_FRACTION:.0%} of which can be filled"
    return f" {room}: {'fits' if _fits(found, found.step.peak) else 'DOES NOT FIT'}"


def _fits(found: Forecast, needed: int) -> bool:
    return found.capacity is None or needed <= USABLE_FRACTION * found.capacity


def _count(number: int) -> str:
    return f"{number / 1e9:.2f} B" if number >= 1e8 else f"{number / 1e6:.2f} M"


def _gigabytes(number: int) -> str:
    return f"{number / 1e9:8.2f} GB" if number >= 1e7 else f"{number / 1e6:8.2f} MB"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "not predicted"
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
