"""What a run will take, before anything is spent or downloaded: memory, operations, time, dollars.

    seconds of a step = operations of the step / (devices x peak of the device x utilisation)

The utilisation is measured (``bench/results/gpu_*.json``, written by ``make gpu-bench``) or assumed, and the forecast
says which. Without a peak (a CPU, an unknown GPU) no time is predicted.
"""

import json
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path

import torch

from reca.config import Config
from reca.models.base import UnifiedModel
from reca.models.loading import load_base
from reca.runtime.errors import UserError
from reca.training.losses import KINDS, build_mixture
from reca.training.precision import bf16_safe_parameters, bfloat16_holds
from tools.memory.accelerators import Accelerator, accelerator_of
from tools.memory.build import build
from tools.memory.sizes import IN_BFLOAT16, PUBLISHED
from tools.memory.step import Plan, Step, estimate_step

USABLE_FRACTION = 0.9
"""Share of a device's memory that tensors can fill; the rest is the context, libraries and fragmentation (assumed)."""
UTILISATION = 0.2
"""Share of the peak where nothing is measured. BAGEL's training on H100s reaches 0.179 in its authors' code and 0.237
in NVIDIA's Megatron-Bridge (its verification card of 2026-08-31; recomputation is not counted there)."""


@dataclass(frozen=True)
class Forecast:
    """What is predicted, and on what grounds."""

    model: str
    sizes: str
    """Where the sizes come from."""
    step: Step
    """Of one device, after sharding."""
    steps: int
    devices: int
    device: str | None
    """``None``: not known, so neither is whether it fits."""
    capacity: int | None
    """Bytes of one device."""
    fits: bool | None
    step_seconds: float | None
    train_seconds: float | None
    extract_seconds: float | None
    device_hours: float | None
    """Of training and extraction together."""
    dollars: float | None
    assumptions: tuple[str, ...]
    changes: tuple[str, ...]
    """What to change where it does not fit."""


def forecast(config: Config, root: Path) -> Forecast:
    """Predict a run.

    Raises:
        UserError: The model's sizes are not known, or the recipe contradicts itself.
    """
    model, sizes = build_sized_model(config, root)
    device = accelerator_of(config.hardware)
    try:
        if config.train.adapter is not None:
            from reca.training.lora import adapt  # needs peft, which nothing else does

            with redirect_stdout(StringIO()):
                adapt(model, config.train.adapter, config.seed)
        rounded, known = bfloat16_parameters(config, model)
        step = estimate_step(model, plan_of(config, rounded))
    except ValueError as error:
        raise UserError(f"this recipe cannot be run: {error}") from None
    shards = config.hardware.devices if config.hardware.shard else 1
    step = sharded(step, shards)
    fits = None if device is None else max(step.peak, step.extract_peak) <= USABLE_FRACTION * device.memory
    seconds, grounds = _seconds(config, root, step, device)
    total = None if seconds is None else seconds.train + (seconds.extract or 0.0)
    hours = None if total is None else total * config.hardware.devices / 3600
    price = config.hardware.price_per_hour
    return Forecast(
        model=config.model.name,
        sizes=sizes,
        step=step,
        steps=config.train.max_steps,
        devices=config.hardware.devices,
        device=None if device is None else device.name,
        capacity=None if device is None else device.memory,
        fits=fits,
        step_seconds=None if seconds is None else seconds.step,
        train_seconds=None if seconds is None else seconds.train,
        extract_seconds=None if seconds is None else seconds.extract,
        device_hours=hours,
        dollars=None if hours is None or price is None else hours * price,
        assumptions=(*known, *grounds),
        changes=() if fits is not False or device is None else changes(config, step, USABLE_FRACTION * device.memory),
    )


def build_sized_model(config: Config, root: Path) -> tuple[UnifiedModel, str]:
    """A model of the right sizes, whatever it holds, and where they come from.

    A checkpoint's weights are views of its files, whose size so does not matter.

    Raises:
        UserError: There is no checkpoint, nor are the preset's sizes known.
    """
    folder = root / config.model.checkpoint
    if folder.is_dir():
        model = load_base(config.model.family, folder, config.model.load_options(root), None)
        return model, f"of {config.model.checkpoint}"
    if config.model.name not in PUBLISHED:
        raise UserError(
            f"the sizes of model.name={config.model.name} are not known: {folder} is missing, and published are only "
            f"those of {', '.join(PUBLISHED)}"
        )
    numbers, options = PUBLISHED[config.model.name], config.model.load_options(root)
    try:
        return build(config.model.family, numbers, options, torch.device("meta")), "as published"
    except ValueError as error:
        raise UserError(f"this model cannot be built: {error}") from None


def bfloat16_parameters(config: Config, model: UnifiedModel) -> tuple[frozenset[str], tuple[str, ...]]:
    """Names of the matrices that training keeps in bfloat16, and what that rests on.

    Without numbers nobody can see whether rounding would lose something; then it depends on what is published.
    """
    names = bf16_safe_parameters(model) if config.train.precision == "bfloat16" else []
    if not names:
        return frozenset(), ()
    if not next(model.parameters()).is_meta:
        values = {name: model.get_parameter(name).data for name in names}
        return frozenset(name for name, value in values.items() if bfloat16_holds(value)), ()
    if config.model.name in IN_BFLOAT16:
        return frozenset(names), ("the weights are bfloat16, as published: frozen matrices are kept so",)
    return frozenset(), ("the weights are not known to be bfloat16: frozen matrices are kept in float32",)


def plan_of(config: Config, rounded: frozenset[str] = frozenset()) -> Plan:
    """The recipe as far as a step's size depends on it.

    Args:
        config: Of the run.
        rounded: Names of the matrices that are kept in bfloat16.

    Raises:
        UserError: A loss gets no sample.
    """
    train, hardware = config.train, config.hardware
    try:
        mixture = build_mixture({kind: getattr(train.mixture, kind) for kind in KINDS}, train.global_batch_size)
    except ValueError as error:
        raise UserError(str(error)) from None
    return Plan(
        mixture=mixture,
        micro_batch_size=hardware.micro_batch_size,
        processes=hardware.devices,
        lower=train.precision == "bfloat16",
        gradient_checkpointing=hardware.gradient_checkpointing,
        fused=hardware.device != "cpu",
        betas=train.betas,
        weight_decay=train.weight_decay,
        templates=train.prompt_templates,
        optimizer_moments=train.optimizer_state_dtype,
        rounded=rounded,
    )


def sharded(step: Step, shards: int) -> Step:
    """Weights, gradients and moments divided over processes (FSDP2), which gather two units at a time; not ``extract``.

    Not compared with a measurement.
    """
    if shards == 1:
        return step
    parts = {name: -(-getattr(step, name) // shards) for name in ("weights", "gradients", "moments")}
    return replace(step, activations=step.activations + 2 * step.largest_unit, **parts)


def changes(config: Config, step: Step, room: float) -> tuple[str, ...]:
    """What would make a step fit into ``room`` bytes, the mildest first."""
    found: list[str] = []
    hardware, lasting = config.hardware, step.weights + step.gradients + step.moments
    if step.extract_peak > room:
        takes = f"extraction takes {step.extract_peak / 1e9:.1f} GB for so many images at a time"
        found.append(f"hardware.micro_batch_size below {hardware.micro_batch_size}: {takes}")
    if step.peak <= room:
        return tuple(found)
    batch = int(hardware.micro_batch_size * (room - lasting) / max(step.activations, 1))
    if batch >= 1:
        found.append(
            f"hardware.micro_batch_size={batch} or less, not {hardware.micro_batch_size}: no result depends on it"
        )
    if not hardware.gradient_checkpointing:
        found.append("hardware.gradient_checkpointing=true: less is kept for the backward pass, a third more time")
    if batch < 1:
        found.append(
            f"another device or model: weights, gradients and moments alone take {lasting / 1e9:.1f} GB of the "
            f"{room / 1e9:.1f} GB that can be filled, and no batch size changes that"
        )
        if config.train.adapter is None:
            found.append("train.adapter='{rank: 64, alpha: 128}': gradients and moments of adapters only")
        if not hardware.shard:
            found.append("hardware.shard=true with hardware.processes=N: each of N devices holds an N-th of these")
    return tuple(found)


@dataclass(frozen=True)
class _Seconds:
    step: float
    train: float
    extract: float | None


def _seconds(
    config: Config, root: Path, step: Step, device: Accelerator | None
) -> tuple[_Seconds | None, tuple[str, ...]]:
    """Times, and what they rest on."""
    if device is None or not device.peaks:
        return None, ("time: not predicted, for the device's peak is not known",)
    share, source = utilisation(config, root)
    devices, images = config.hardware.devices, config.data.num_images
    seconds = step.flops / (devices * device.peaks[config.train.precision] * share)
    extract = None
    if images is not None:
        extract = images * step.extract_flops / (devices * device.peaks["float32"] * share)
    grounds = (
        f"{share:.0%} of the peak is reached, {source}",
        "loading, communication, held-out losses and checkpoints cost no time",
        f"tensors can fill {USABLE_FRACTION:.0%} of the memory",
    )
    return _Seconds(seconds, seconds * config.train.max_steps, extract), grounds


def utilisation(config: Config, root: Path) -> tuple[float, str]:
    """The share of the peak that is reached, and who says so."""
    path = root / f"bench/results/gpu_{config.hardware.forecast_gpu or 'none'}.json"
    if path.is_file():
        rows = json.loads(path.read_text())["families"]
        share = next((row.get("mfu") for row in rows if row["family"] == config.model.family), None)
        if share:
            return float(share), f"measured ({path.relative_to(root)})"
    return UTILISATION, "assumed (measured for BAGEL elsewhere: 18 to 24 %); `make gpu-bench` measures it"
