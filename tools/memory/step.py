"""What one optimizer step takes on one device, found by taking it with a model that holds no numbers.

The code that runs is that of training: the family's losses, :func:`reca.training.loop.accumulate`, clipping and the
optimizer, over :mod:`tools.memory.simulation`. The peak is the maximum over the phases of a step

    peak = max over phases of (weights + moments + gradients so far + what the phase itself holds)

with the phases: each loss forward and backward (two micro-batches of it, for a second one finds the first one's
gradients there), and the optimizer. ``activations`` is what the peak has beyond weights, gradients and moments: saved
tensors, autocast's copies, logits, gradients that exist twice. ``extract`` runs before that, in a process of its own.

:func:`measure_step` takes the same step with numbers and follows the same storages; that tests the estimate.

Left out: what the device's libraries hold, fragmentation, buffers of communication, and how GPU kernels differ from
the CPU's in what they save (``bench/memory.py`` compares with measurements on a CPU).
"""

import gc
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from reca.models.base import Dialogue, Loss, Semantic, Target, UnifiedModel
from reca.models.prompts import choose_templates
from reca.runtime.distributed import DistributedContext
from reca.runtime.seeding import SampleRng
from reca.training.activation_checkpointing import blocks, checkpoint_blocks
from reca.training.loop import accumulate
from reca.training.losses import Kind, Mixture, TrainingBatch, compute_loss
from reca.training.low_bit_adamw import StateDtype, state_bytes
from reca.training.optimizer import build_optimizer, freeze, set_training_mode
from tools.memory.flops import flops_of
from tools.memory.simulation import FakeTensorHelpers, LiveBytes, to_fake

CAPTION, QUESTION, ANSWER = "word " * 24, "word " * 16, "word " * 24
"""Stand-ins for what the data say; their lengths are assumed."""
PARTS = 2
"""Micro-batches of each loss that are simulated; further ones find the same memory as the second."""


@dataclass(frozen=True)
class Plan:
    """How a step is put together on the device that has most to do."""

    mixture: Mixture
    micro_batch_size: int
    processes: int
    lower: bool
    """The losses are computed under bfloat16 autocast."""
    gradient_checkpointing: bool
    fused: bool
    """The optimizer needs no memory of its own, as on a GPU."""
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    templates: int | None = None
    optimizer_moments: StateDtype = "float32"
    rounded: frozenset[str] = frozenset()
    """Names of the matrices that training keeps in bfloat16 (:mod:`reca.training.precision`)."""

    def share(self, kind: Kind) -> int:
        """Samples of a kind that one process takes."""
        return -(-self.mixture.counts[kind] // self.processes)


@dataclass(frozen=True)
class Step:
    """Counts of numbers, bytes on one device, and operations; tokens and operations are those of all devices."""

    parameters: int
    trained: int
    weights: int
    gradients: int
    moments: int
    activations: int
    phase: str
    """Where the peak is: a loss, or ``optimizer``."""
    largest_unit: int
    """Bytes of the largest block, or of all that is in no block, if that is more: what sharding gathers at a time."""
    images: int
    tokens: int
    """Embeddings and targets of all samples; words are left out."""
    flops: int
    """With recomputation, where activations are recomputed."""
    extract_peak: int
    """Bytes on one device while ``extract`` encodes a micro-batch; it holds the encoders alone."""
    extract_flops: int
    """Of encoding one image, as far as it may be stored."""

    @property
    def peak(self) -> int:
        """Bytes on one device while it trains."""
        return self.weights + self.gradients + self.moments + self.activations


class FakeProcessGroup(DistributedContext):
    """A process among others that have the same to say; nobody is asked."""

    def all_reduce_(self, values: Tensor) -> Tensor:
        """As if the others had nothing."""
        return values


def estimate_step(model: UnifiedModel, plan: Plan) -> Step:
    """Take a step without numbers.

    Args:
        model: On any device, ``meta`` included; its parameters are replaced.
        plan: The recipe as far as it matters.

    Raises:
        ValueError: A size, a prompt or a dialogue does not fit into the model.
    """
    to_fake(model)
    with FakeTensorHelpers():
        return measure_step(model, plan)


def measure_step(model: UnifiedModel, plan: Plan) -> Step:
    """Take the same step with whatever the model holds: with numbers, a measurement."""
    parameters = freeze(model, set(model.trainable()))
    inputs = _Inputs(model, plan)
    extract_peak, extract_flops = _extraction(model, inputs, plan)
    for name in plan.rounded:
        matrix = model.get_parameter(name)
        matrix.data = matrix.data.bfloat16()
    held = [*model.parameters(), *model.buffers()]
    weights, gradients = bytes_of(held), bytes_of(parameters.values())
    live, peaks = LiveBytes(held), dict[str, int]()
    if plan.gradient_checkpointing:
        checkpoint_blocks(model)
    set_training_mode(model)
    optimizer = build_optimizer(parameters, plan.betas, plan.weight_decay, no_weight_decay=model.no_weight_decay)
    with live:
        moments = _make_moments(parameters, optimizer)
        flops = {kind: _take(live, peaks, parameters, inputs, plan, kind) for kind in plan.mixture.kinds}
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
        # The step is taken with moments in float32, since rounding by chance needs numbers; smaller ones are counted.
        moments=moments
        if plan.optimizer_moments == "float32"
        else sum(state_bytes(parameter, plan.optimizer_moments) for parameter in parameters.values()),
        activations=max(peaks[phase] - weights - gradients - moments, 0),
        phase=phase,
        largest_unit=_largest_unit(model),
        images=sum(plan.mixture.counts.values()),
        tokens=sum(_tokens(model, kind) * plan.mixture.counts[kind] for kind in plan.mixture.kinds),
        flops=sum(flops.values()),
        extract_peak=extract_peak,
        extract_flops=extract_flops,
    )


def _extraction(model: UnifiedModel, inputs: "_Inputs", plan: Plan) -> tuple[int, int]:
    """The peak of encoding a batch by the encoders alone, and the operations of encoding one image."""
    live = LiveBytes([*model.parameters(), *model.buffers()])
    with live:
        flops = flops_of(partial(inputs.encode, 1))
        live.restart()
        inputs.encode(plan.micro_batch_size)
    unused = bytes_of(value for name, value in model.named_parameters() if not model.is_encoder_parameter(name))
    return live.peak - unused, flops


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of some tensors; views of one storage count once."""
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def _largest_unit(model: nn.Module) -> int:
    units = [sum(parameter.nbytes for parameter in block.parameters()) for block in blocks(model)]
    rest = sum(parameter.nbytes for parameter in model.parameters()) - sum(units)
    return max([rest, *units])


def _make_moments(parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> int:
    """The optimizer's state as it is from the second step on; returns its bytes."""
    for parameter in parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    state = [value for values in optimizer.state.values() for value in values.values() if isinstance(value, Tensor)]
    return bytes_of(state)


def _take(
    live: LiveBytes,
    peaks: dict[str, int],
    parameters: Mapping[str, nn.Parameter],
    inputs: "_Inputs",
    plan: Plan,
    kind: Kind,
) -> int:
    """One loss of the step, on top of the gradients of those before it; returns the operations of all its samples."""
    ids = range(min(plan.share(kind), PARTS * plan.micro_batch_size))
    parts = [ids[start : start + plan.micro_batch_size] for start in range(0, len(ids), plan.micro_batch_size)]
    distributed = FakeProcessGroup(world_size=plan.processes)
    gc.collect()
    live.restart()
    work = partial(
        accumulate,
        list(parameters.values()),
        parts,
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
    """What :class:`reca.training.loader.TrainingData` reads, of the right shapes.

    Args:
        model: FakeTensorHelpers.
        plan: For the precision and the templates.
    """

    def __init__(self, model: UnifiedModel, plan: Plan) -> None:
        self._model = model
        self._templates = plan.templates
        self._autocast = torch.autocast("cpu", torch.bfloat16, enabled=plan.lower, cache_enabled=False)
        with torch.no_grad():
            self._target = model.encode_target(self._pixels(1, model.spec.generation_size), SampleRng([0])).values
            self._semantic = model.encode_semantic(self._pixels(1, model.spec.understanding_size)).embeds

    def _pixels(self, count: int, size: int) -> Tensor:
        return torch.zeros(count, 3, size, size)

    @torch.no_grad()
    def encode(self, count: int) -> None:
        """What ``extract`` does with a batch."""
        if "semantic" in self._model.cacheable:
            self._model.encode_semantic(self._pixels(count, self._model.spec.understanding_size))
        self._model.encode_target(self._pixels(count, self._model.spec.generation_size), SampleRng(list(range(count))))

    def loss(self, kind: Kind, ids: Sequence[int]) -> Loss:
        """One micro-batch forward."""
        return compute_loss(self._model, self._batch(kind, list(ids)), self._autocast)

    def _batch(self, kind: Kind, seeds: list[int]) -> TrainingBatch:
        count, spec = len(seeds), self._model.spec
        if kind == "understanding":
            images = self._pixels(count, spec.understanding_size)
            return TrainingBatch(kind, seeds, images, dialogues=[Dialogue(QUESTION, ANSWER)] * count)
        drawn = Target(_like(self._target, count))
        if kind == "text_to_image":
            return TrainingBatch(kind, seeds, None, drawn, [CAPTION] * count)
        stored = "semantic" in self._model.cacheable
        seen = Semantic(_like(self._semantic, count)) if stored else self._pixels(count, spec.understanding_size)
        return TrainingBatch(kind, seeds, seen, drawn, choose_templates(seeds, self._templates))


def _like(example: Tensor, count: int) -> Tensor:
    """Rows of the example's shape, as the cache gives them."""
    return example.new_zeros((count, *example.shape[1:]))
