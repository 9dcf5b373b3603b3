"""Memory and operations of one optimizer step on a device, from running it on fake tensors.

The code that runs is that of training: the family's losses, :func:`reca.training.step.accumulate`, clipping and the
optimizer, over :mod:`tools.memory.simulation`. The peak is the maximum over the phases of a step

    peak = max over phases of (weights + moments + gradients so far + the phase's own tensors)

with the phases: each loss forward and backward (two micro-batches, because the second one runs next to the first
one's gradients), and the optimizer. ``activations`` is the peak less weights, gradients and moments: saved tensors,
autocast's copies, logits, gradients that exist twice. ``extract`` runs earlier, in a separate process.

:func:`measure_step` runs the same step on real tensors and tracks the same storages, which tests the estimate.

Not included: memory of the device's libraries, fragmentation, communication buffers, and tensors that GPU kernels save
differently from the CPU's (``bench/memory.py`` compares with measurements on a CPU).
"""

import gc
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from reca.models.base import Dialogue, Loss, Semantic, Target, UnifiedModel
from reca.runtime.distributed import DistributedContext
from reca.runtime.seeding import SampleRng
from reca.training.activation_checkpointing import blocks, checkpoint_blocks
from reca.training.losses import Kind, TrainingBatch, choose_templates, compute_loss
from reca.training.low_bit_adamw import StateDtype, state_bytes
from reca.training.mixture import Mixture
from reca.training.optimizer import build_optimizer, freeze, set_training_mode
from reca.training.step import accumulate
from tools.memory.flops import flops_of
from tools.memory.simulation import FakeTensorHelpers, LiveBytes, to_fake

CAPTION, QUESTION, ANSWER = "word " * 24, "word " * 16, "word " * 24
"""Placeholder texts of assumed lengths."""
MICRO_BATCHES = 2
"""Micro-batches run per loss; further ones need the same memory as the second."""


@dataclass(frozen=True)
class Plan:
    """The composition of a step on the device with the most samples."""

    mixture: Mixture
    micro_batch_size: int
    processes: int
    autocast_bf16: bool
    """Compute the losses under bfloat16 autocast."""
    gradient_checkpointing: bool
    fused: bool
    """Optimizer step without temporary memory, as on a GPU."""
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    templates: int | None = None
    optimizer_state_dtype: StateDtype = "float32"
    bf16_parameters: frozenset[str] = frozenset()
    """Names of the matrices that training stores in bfloat16 (:mod:`reca.training.precision`)."""
    embedding_dtype: torch.dtype = torch.bfloat16
    """``extract.dtype``."""

    def share(self, kind: Kind) -> int:
        """Return the number of samples of a kind on one rank."""
        return -(-self.mixture.counts[kind] // self.processes)


@dataclass(frozen=True)
class Step:
    """Parameter counts, bytes on one device, and operations; tokens and operations are totals over all devices."""

    parameters: int
    trained: int
    weights: int
    gradients: int
    moments: int
    activations: int
    phase: str
    """Phase with the peak: a loss, or ``optimizer``."""
    largest_unit: int
    """Bytes that sharding gathers at a time: the largest block, or all parameters outside blocks if these are more."""
    images: int
    tokens: int
    """Embeddings and targets of all samples, without text tokens."""
    flops: int
    """Including recomputation of activations."""
    extract_peak: int
    """Bytes on one device while ``extract`` encodes a micro-batch with only the encoders in memory."""
    extract_flops: int
    """Operations to encode one image's cacheable outputs."""
    stored: int
    """Bytes on disk of what ``extract`` stores of one image."""

    @property
    def peak(self) -> int:
        """Bytes on one device during training."""
        return self.weights + self.gradients + self.moments + self.activations


class FakeProcessGroup(DistributedContext):
    """A process group of equal ranks without communication."""

    def all_reduce(self, values: Tensor) -> Tensor:
        """Return the values unchanged."""
        return values


def estimate_step(model: UnifiedModel, plan: Plan) -> Step:
    """Estimate a step on fake tensors.

    Args:
        model: On any device, including ``meta``; its parameters are replaced.
        plan: The composition of the step.

    Raises:
        ValueError: A size, a prompt or a dialogue does not fit into the model.
    """
    to_fake(model)
    with FakeTensorHelpers():
        return measure_step(model, plan)


def measure_step(model: UnifiedModel, plan: Plan) -> Step:
    """Run a step and track its storages: a measurement where the model's tensors are real."""
    parameters = freeze(model, set(model.trainable()))
    inputs = _Inputs(model, plan)
    extract_peak, extract_flops = _extraction(model, inputs, plan)
    for name in plan.bf16_parameters:
        matrix = model.get_parameter(name)
        matrix.data = matrix.data.bfloat16()
    tensors = [*model.parameters(), *model.buffers()]
    weights, gradients = bytes_of(tensors), bytes_of(parameters.values())
    live, peaks = LiveBytes(tensors), dict[str, int]()
    if plan.gradient_checkpointing:
        checkpoint_blocks(model)
    set_training_mode(model)
    optimizer = build_optimizer(parameters, plan.betas, plan.weight_decay, no_weight_decay=model.no_weight_decay)
    with live:
        moments = _init_moments(parameters, optimizer)
        flops = {kind: _run_loss(live, peaks, model, inputs, plan, kind) for kind in plan.mixture.kinds}
        if not plan.fused:
            live.restart()
            nn.utils.clip_grad_norm_(parameters.values(), 1.0)
            optimizer.step()
            peaks["optimizer"] = live.peak
    phase = max(peaks, key=peaks.__getitem__)
    return Step(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        trained=sum(parameter.numel() for parameter in parameters.values()),
        weights=weights,
        gradients=gradients,
        # The step runs with float32 moments, because stochastic rounding needs real values; smaller ones are counted.
        moments=moments
        if plan.optimizer_state_dtype == "float32"
        else sum(state_bytes(parameter, plan.optimizer_state_dtype) for parameter in parameters.values()),
        activations=max(peaks[phase] - weights - gradients - moments, 0),
        phase=phase,
        largest_unit=_largest_unit(model),
        images=sum(plan.mixture.counts.values()),
        tokens=sum(_tokens(model, kind) * plan.mixture.counts[kind] for kind in plan.mixture.kinds),
        flops=sum(flops.values()),
        extract_peak=extract_peak,
        extract_flops=extract_flops,
        stored=inputs.stored(plan.embedding_dtype),
    )


def _extraction(model: UnifiedModel, inputs: "_Inputs", plan: Plan) -> tuple[int, int]:
    """Return the peak of encoding a batch with the encoders alone, and the operations of encoding an image."""
    live = LiveBytes([*model.parameters(), *model.buffers()])
    with live:
        flops = flops_of(partial(inputs.encode, 1))
        live.restart()
        inputs.encode(plan.micro_batch_size)
    unused = bytes_of(value for name, value in model.named_parameters() if not model.is_encoder_parameter(name))
    return live.peak - unused, flops


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of some tensors; views of a shared storage count once."""
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def _largest_unit(model: nn.Module) -> int:
    units = [sum(parameter.nbytes for parameter in block.parameters()) for block in blocks(model)]
    rest = sum(parameter.nbytes for parameter in model.parameters()) - sum(units)
    return max([rest, *units])


def _init_moments(parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> int:
    """Create the optimizer's state as of the second step; return its bytes."""
    for parameter in parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    state = [value for values in optimizer.state.values() for value in values.values() if isinstance(value, Tensor)]
    return bytes_of(state)


def _run_loss(
    live: LiveBytes,
    peaks: dict[str, int],
    model: UnifiedModel,
    inputs: "_Inputs",
    plan: Plan,
    kind: Kind,
) -> int:
    """Run one loss of the step on top of the earlier gradients; return the operations of all its samples."""
    ids = range(min(plan.share(kind), MICRO_BATCHES * plan.micro_batch_size))
    micro_batches = [ids[start : start + plan.micro_batch_size] for start in range(0, len(ids), plan.micro_batch_size)]
    distributed = FakeProcessGroup(world_size=plan.processes)
    gc.collect()
    live.restart()
    work = partial(
        accumulate,
        model,
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        micro_batches,
        plan.mixture.loss_weights[kind],
        partial(inputs.loss, kind),
        distributed,
    )
    flops = flops_of(work)
    peaks[kind] = live.peak
    return round(flops * plan.mixture.counts[kind] / len(ids))


def _tokens(model: UnifiedModel, kind: Kind) -> int:
    spec = model.spec
    return {
        "reconstruction": spec.semantic_tokens + spec.target_tokens,
        "text_to_image": spec.target_tokens,
        "understanding": spec.semantic_tokens,
    }[kind]


class _Inputs:
    """Inputs of the shapes that :class:`reca.training.loader.TrainingData` reads.

    Args:
        model: The model.
        plan: Its precision and templates are used.
    """

    def __init__(self, model: UnifiedModel, plan: Plan) -> None:
        self._model = model
        self._templates = plan.templates
        self._autocast = torch.autocast("cpu", torch.bfloat16, enabled=plan.autocast_bf16, cache_enabled=False)
        with torch.no_grad():
            self._target = model.encode_target(self._pixels(1, model.spec.generation_size), SampleRng([0])).values
            self._semantic = model.encode_semantic(self._pixels(1, model.spec.understanding_size)).embeds

    def _pixels(self, count: int, size: int) -> Tensor:
        return torch.zeros(count, 3, size, size)

    def stored(self, dtype: torch.dtype) -> int:
        """Return the bytes that ``extract`` stores of an image, with embeddings in ``dtype``."""
        semantic = self._semantic.numel() * dtype.itemsize if "semantic" in self._model.cacheable else 0
        return semantic + (self._target.nbytes if "target" in self._model.cacheable else 0)

    @torch.no_grad()
    def encode(self, count: int) -> None:
        """Encode a batch as ``extract`` does."""
        if "semantic" in self._model.cacheable:
            self._model.encode_semantic(self._pixels(count, self._model.spec.understanding_size))
        self._model.encode_target(self._pixels(count, self._model.spec.generation_size), SampleRng(list(range(count))))

    def loss(self, kind: Kind, ids: Sequence[int]) -> Loss:
        """Return a micro-batch's loss."""
        return compute_loss(self._model, self._batch(kind, list(ids)), self._autocast)

    def _batch(self, kind: Kind, seeds: list[int]) -> TrainingBatch:
        count, spec = len(seeds), self._model.spec
        if kind == "understanding":
            images = self._pixels(count, spec.understanding_size)
            return TrainingBatch(kind, seeds, images, dialogues=[Dialogue(QUESTION, ANSWER)] * count)
        target = Target(_like(self._target, count))
        if kind == "text_to_image":
            return TrainingBatch(kind, seeds, None, target, [CAPTION] * count)
        stored = "semantic" in self._model.cacheable
        condition = Semantic(_like(self._semantic, count)) if stored else self._pixels(count, spec.understanding_size)
        return TrainingBatch(kind, seeds, condition, target, choose_templates(seeds, self._templates))


def _like(example: Tensor, count: int) -> Tensor:
    """Return zeros of the example's shape, as rows from the cache."""
    return example.new_zeros((count, *example.shape[1:]))
