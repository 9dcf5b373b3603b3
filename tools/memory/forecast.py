"""Prediction of a run's memory, operations, time and cost, without downloads.

    seconds of a step = operations of the step / (devices x peak of the device x utilisation)

The utilisation is measured (``bench/results/gpu_*.json``, written by ``make gpu-bench``) or assumed, and the forecast
states which. Without a peak (a CPU, an unknown GPU) no time is predicted.
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
from reca.runtime.distributed import DistributedContext
from reca.runtime.errors import UserError
from reca.training.losses import KINDS
from reca.training.mixture import build_mixture
from reca.training.precision import bf16_safe_parameters, bfloat16_holds
from tools.memory.accelerators import Accelerator, select_accelerator
from tools.memory.build import build
from tools.memory.sizes import IN_BFLOAT16, PUBLISHED
from tools.memory.step import Plan, Step, estimate_step

USABLE_FRACTION = 0.9
"""Share of a device's memory that tensors can fill; the rest is the context, libraries and fragmentation (assumed)."""
UTILISATION = 0.2
"""Assumed share of the peak. BAGEL's training on H100s reaches 0.179 in its authors' code and 0.237
in NVIDIA's Megatron-Bridge (its verification card of 2026-08-31; recomputation is not counted there)."""


@dataclass(frozen=True)
class Forecast:
    """A prediction with its assumptions."""

    model: str
    sizes: str
    """Origin of the sizes."""
    step: Step
    """The step on one device, after sharding."""
    steps: int
    images: int | None
    """Images of the data set, if ``data.num_images`` names them."""
    devices: int
    device: str | None
    """``None`` if unknown; then ``fits`` is too."""
    capacity: int | None
    """Memory of a device in bytes."""
    fits: bool | None
    step_seconds: float | None
    train_seconds: float | None
    extract_seconds: float | None
    device_hours: float | None
    """Training and extraction together."""
    dollars: float | None
    assumptions: tuple[str, ...]
    changes: tuple[str, ...]
    """Suggested changes if it does not fit."""


def forecast(config: Config, root: Path) -> Forecast:
    """Predict a run.

    Raises:
        UserError: The model's sizes are unknown, or the configuration contradicts itself.
    """
    model, sizes = build_sized_model(config, root)
    device = select_accelerator(config.hardware)
    try:
        if config.train.adapter is not None:
            from reca.training.lora import adapt  # only this needs peft

            with redirect_stdout(StringIO()):
                adapt(model, config.train.adapter, config.seed)
        names, dtype_assumptions = bfloat16_parameters(config, model)
        step = estimate_step(model, build_plan(config, names))
    except ValueError as error:
        raise UserError(f"this configuration cannot be run: {error}") from None
    ranks = DistributedContext(world_size=config.hardware.devices, ranks_per_host=config.hardware.processes)
    step = shard_step(step, *ranks.mesh_shape(config.hardware.shard))
    room = None if device is None else USABLE_FRACTION * device.memory
    fits = None if room is None else max(step.peak, step.extract_peak) <= room
    seconds, assumptions = _seconds(config, root, step, device)
    total = None if seconds is None else seconds.train + (seconds.extract or 0.0)
    hours = None if total is None else total * config.hardware.devices / 3600
    price = config.hardware.price_per_hour
    return Forecast(
        model=config.model.name,
        sizes=sizes,
        step=step,
        steps=config.train.max_steps,
        images=config.data.num_images,
        devices=config.hardware.devices,
        device=None if device is None else device.name,
        capacity=None if device is None else device.memory,
        fits=fits,
        step_seconds=None if seconds is None else seconds.step,
        train_seconds=None if seconds is None else seconds.train,
        extract_seconds=None if seconds is None else seconds.extract,
        device_hours=hours,
        dollars=None if hours is None or price is None else hours * price,
        assumptions=(*dtype_assumptions, *assumptions),
        changes=()
        if fits is not False or device is None
        else suggest_changes(config, step, USABLE_FRACTION * device.memory),
    )


def build_sized_model(config: Config, root: Path) -> tuple[UnifiedModel, str]:
    """Build a model of the configured sizes, with any weights; return it and the origin of the sizes.

    A checkpoint's weights are memory-mapped, so loading it takes no memory.

    Raises:
        UserError: There is no checkpoint, and the preset has no published sizes.
    """
    folder = root / config.model.checkpoint
    if folder.is_dir():
        model = load_base(config.model.family, folder, config.model.load_options(root), None)
        return model, f"of {config.model.checkpoint}"
    if config.model.name not in PUBLISHED:
        raise UserError(
            f"the sizes of model.name={config.model.name} are not known: {folder} is missing, and published sizes "
            f"exist only for {', '.join(PUBLISHED)}"
        )
    numbers, options = PUBLISHED[config.model.name], config.model.load_options(root)
    try:
        return build(config.model.family, numbers, options, torch.device("meta")), "as published"
    except ValueError as error:
        raise UserError(f"this model cannot be built: {error}") from None


def bfloat16_parameters(config: Config, model: UnifiedModel) -> tuple[frozenset[str], tuple[str, ...]]:
    """Return the names of the matrices that training stores in bfloat16, and the assumptions behind it.

    Without weights the values cannot be checked for bfloat16; then the published dtype decides.
    """
    names = bf16_safe_parameters(model) if config.train.precision == "bfloat16" else []
    if not names:
        return frozenset(), ()
    if not next(model.parameters()).is_meta:
        values = {name: model.get_parameter(name).data for name in names}
        return frozenset(name for name, value in values.items() if bfloat16_holds(value)), ()
    if config.model.name in IN_BFLOAT16:
        return frozenset(names), ("the weights are bfloat16, as published: frozen matrices stay bfloat16",)
    return frozenset(), ("the weights are not known to be bfloat16: frozen matrices stay float32",)


def build_plan(config: Config, bf16_parameters: frozenset[str]) -> Plan:
    """Return the composition of a step.

    Args:
        config: The run's configuration.
        bf16_parameters: Names of the matrices that are stored in bfloat16.

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
        autocast_bf16=train.precision == "bfloat16",
        gradient_checkpointing=hardware.gradient_checkpointing,
        fused=hardware.device != "cpu",
        betas=train.betas,
        weight_decay=train.weight_decay,
        templates=train.prompt_templates,
        optimizer_state_dtype=train.optimizer_state_dtype,
        bf16_parameters=bf16_parameters,
        embedding_dtype=getattr(torch, config.extract.dtype),
    )


def shard_step(step: Step, replicas: int, shards: int) -> Step:
    """Divide weights, gradients and moments over a replica's ranks (FSDP2), which gather two units at a time.

    Where there is one rank per replica, the units are copies of its weights.

    ``extract`` is not sharded. This has not been compared with a measurement.
    """
    if replicas * shards == 1:
        return step
    shares = {name: -(-getattr(step, name) // shards) for name in ("weights", "gradients", "moments")}
    return replace(step, activations=step.activations + 2 * step.largest_unit, **shares)


def suggest_changes(config: Config, step: Step, room: float) -> tuple[str, ...]:
    """Suggest changes that would make a step fit into ``room`` bytes, the mildest first."""
    suggestions: list[str] = []
    hardware, persistent = config.hardware, step.weights + step.gradients + step.moments
    if step.extract_peak > room:
        reason = f"extraction takes {step.extract_peak / 1e9:.1f} GB for so many images at a time"
        suggestions.append(f"hardware.micro_batch_size below {hardware.micro_batch_size}: {reason}")
    if step.peak <= room:
        return tuple(suggestions)
    batch = int(hardware.micro_batch_size * (room - persistent) / max(step.activations, 1))
    if batch >= 1:
        suggestions.append(
            f"hardware.micro_batch_size={batch} or less, not {hardware.micro_batch_size}: same results up to rounding"
        )
    if not hardware.gradient_checkpointing:
        suggestions.append("hardware.gradient_checkpointing=true: fewer saved activations, a third more time")
    if batch < 1:
        suggestions.append(
            f"another device or model: weights, gradients and moments take {persistent / 1e9:.1f} GB of the "
            f"{room / 1e9:.1f} GB that can be filled at any batch size"
        )
        if config.train.adapter is None:
            suggestions.append("train.adapter='{rank: 64, alpha: 128}': gradients and moments of adapters only")
        if hardware.shard == "none":
            suggestions.append("hardware.shard=all with hardware.processes=N: each device stores an N-th of these")
    return tuple(suggestions)


@dataclass(frozen=True)
class _Seconds:
    step: float
    train: float
    extract: float | None


def _seconds(
    config: Config, root: Path, step: Step, device: Accelerator | None
) -> tuple[_Seconds | None, tuple[str, ...]]:
    """Return times and the assumptions behind them."""
    if device is None or not device.peaks:
        return None, ("time: not predicted, because the device's peak is unknown",)
    share, source = utilisation(config, root)
    devices, images = config.hardware.devices, config.data.num_images
    seconds = step.flops / (devices * device.peaks[config.train.precision] * share)
    extract = None
    if images is not None:
        extract = images * step.extract_flops / (devices * device.peaks["float32"] * share)
    assumptions = (
        f"{share:.0%} of the peak is reached, {source}",
        "loading, communication, held-out losses and checkpoints take no time",
        f"tensors can fill {USABLE_FRACTION:.0%} of the memory",
    )
    return _Seconds(seconds, seconds * config.train.max_steps, extract), assumptions


def utilisation(config: Config, root: Path) -> tuple[float, str]:
    """Return the share of the peak that is reached, and its source."""
    path = root / f"bench/results/gpu_{config.hardware.forecast_gpu or 'none'}.json"
    if path.is_file():
        rows = json.loads(path.read_text())["families"]
        share = next((row.get("mfu") for row in rows if row["family"] == config.model.family), None)
        if share:
            return float(share), f"measured ({path.relative_to(root)})"
    return UTILISATION, "assumed (published for BAGEL: 18 to 24 %); `make gpu-bench` measures it"
