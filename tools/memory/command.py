"""``reca doctor KEY=VALUE …``: print a forecast."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from reca.config import compose
from tools.memory.forecast import USABLE_FRACTION, Forecast, forecast


def predict(overrides: Sequence[str], root: Path, as_json: bool = False) -> int:
    """Print the forecast of a run with these overrides.

    Returns:
        0, or 1 if it does not fit.
    """
    prediction = forecast(compose(overrides), root)
    print(json.dumps(to_dict(prediction), indent=2) if as_json else "\n".join(lines(prediction)))
    return int(prediction.fits is False)


def to_dict(prediction: Forecast) -> dict[str, object]:
    """Return the forecast for JSON: bytes, seconds, US dollars; ``None`` where unpredicted."""
    values = asdict(prediction)
    values["step"]["peak"] = prediction.step.peak
    return values


def lines(prediction: Forecast) -> Iterator[str]:
    """Yield the forecast as lines of text. GB are 10^9 bytes."""
    step, device = prediction.step, prediction.device or "an unknown GPU"
    yield f"{prediction.model} (sizes {prediction.sizes}) on {prediction.devices} x {device}"
    yield _row("parameters", f"{_count(step.parameters)}, of which {_count(step.trained)} are trained")
    yield _row("weights", _gigabytes(step.weights) + " a device")
    yield _row("gradients", _gigabytes(step.gradients))
    yield _row("moments", _gigabytes(step.moments))
    yield _row("activations", f"{_gigabytes(step.activations)}, most in: {step.phase}")
    yield _row("together", f"{_gigabytes(step.peak)}{_fit_text(prediction)}")
    yield _row("a step", f"{step.images} samples, {step.tokens:,} tokens, {step.flops / 1e12:,.4g} TFLOP")
    yield _row("step time", _duration(prediction.step_seconds))
    yield _row("training", f"{prediction.steps:,} steps, {_duration(prediction.train_seconds)}")
    verdict = "" if _fits(prediction, step.extract_peak) else ", which DOES NOT FIT"
    yield _row("extraction", f"{_gigabytes(step.extract_peak)}{verdict}; {_duration(prediction.extract_seconds)}")
    yield _row("on disk", _disk_text(prediction))
    yield _row("evaluation", "not predicted: generation and answering are not bound by operations")
    if prediction.device_hours is not None:
        price = "no hardware.price_per_hour is set" if prediction.dollars is None else f"$ {prediction.dollars:,.2f}"
        yield _row("cost", f"{prediction.device_hours:,.2f} device-hours of training and extraction; {price}")
    yield from (f"assumed: {assumption}" for assumption in prediction.assumptions)
    yield from (f"change: {change}" for change in prediction.changes)


def _row(name: str, value: str) -> str:
    return f"  {name:<12}{value}"


def _fit_text(prediction: Forecast) -> str:
    if prediction.capacity is None:
        return "; to compare it with a GPU, set hardware.forecast_gpu=h100"
    room = f"of {prediction.capacity / 1e9:.1f} GB, {USABLE_FRACTION:.0%} of which can be filled"
    return f" {room}: {'fits' if _fits(prediction, prediction.step.peak) else 'DOES NOT FIT'}"


def _disk_text(prediction: Forecast) -> str:
    stored, images = prediction.step.stored, prediction.images
    total = (
        "for every image of the data set"
        if images is None
        else f"x {images:,} images = {_gigabytes(stored * images).strip()}"
    )
    return f"{_gigabytes(stored)} of embeddings and targets an image {total}"


def _fits(prediction: Forecast, needed: int) -> bool:
    return prediction.capacity is None or needed <= USABLE_FRACTION * prediction.capacity


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
