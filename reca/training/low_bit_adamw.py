"""AdamW that stores each of its two moments in one or two bytes per parameter instead of four.

The step itself is torch's, in float32, one parameter after the other. Between steps the moments are stored as

    bfloat16   the upper half of the float32
    8bit       one of 256 levels, relative to the largest value of a block (dynamic codes of Dettmers et al., arXiv
               2110.02861); the second moment by its root, so that both moments span equally many decades

with stochastic rounding. Rounded to the nearest, a second moment would not move: with beta = 0.999 a step moves it by
0.1 %, and neighbours are 0.4 % or more apart.
"""

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.adamw import adamw

from reca.runtime.seeding import derive_seed
from reca.training.fsdp import zeros_like_rows

LowBitDtype = Literal["bfloat16", "8bit"]
StateDtype = Literal["float32", "bfloat16", "8bit"]
MOMENTS = ("exp_avg", "exp_avg_sq")
LONGEST_BLOCK, SHORTEST_BLOCK = 256, 32
SMALLEST = 4096
"""Parameters with fewer values, vectors, and rows that do not divide into blocks use bfloat16 instead of 8 bits."""
DRAWN_VALUES = 2**20
"""Random numbers of a generator: enough to be fast, and few for a rank to draw beyond its own rows."""


class LowBitAdamW(torch.optim.AdamW):
    """AdamW with moments in few bytes, which are saved and loaded in their storage types.

    The random numbers of the rounding are a function of the parameter's position in the groups, the step and the row
    of the whole parameter. So equal gradients have equal results, bit for bit, on any number of ranks, sharded or not.

    Args:
        groups: As for ``torch.optim.AdamW``.
        state_dtype: Storage of both moments.
        lr, betas, eps: As for ``torch.optim.AdamW``.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        state_dtype: LowBitDtype,
        lr: float,
        betas: tuple[float, float],
        eps: float,
    ) -> None:
        super().__init__(groups, lr=lr, betas=betas, eps=eps)
        self._state_dtype: LowBitDtype = state_dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update all parameters that have a gradient."""
        number = 0
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step(parameter, number, group)
                number += 1

    def _step(self, parameter: nn.Parameter, number: int, group: Mapping[str, Any]) -> None:
        state = self.state[parameter]
        values, gradient = _local(parameter), _local(parameter.grad)
        steps = state.setdefault("step", torch.zeros(()))
        moments = [_read(state, name, values) for name in MOMENTS]
        adamw(
            [values],
            [gradient],
            [moments[0]],
            [moments[1]],
            [],
            [steps],
            foreach=False,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
        for name, moment in zip(MOMENTS, moments, strict=True):
            noise = uniform_rows(parameter, derive_seed("moments", number, int(steps), name))
            for key, stored in self._quantize(name, moment, block_length(parameter), noise).items():
                if key not in state:
                    state[key] = zeros_like_rows(parameter, stored.shape[1:], stored.dtype)
                _local(state[key]).copy_(stored)

    def _quantize(self, name: str, moment: Tensor, block: int, noise: Tensor) -> dict[str, Tensor]:
        if self._state_dtype == "bfloat16" or not block:
            return {name: to_bfloat16(moment, noise)}
        codes, scales = to_codes(moment.sqrt() if name == "exp_avg_sq" else moment, block, name == "exp_avg", noise)
        return {name: codes, f"{name}_scale": scales}


def block_length(parameter: Tensor) -> int:
    """Return how many neighbours in a row (all axes but the first) share a scale in 8 bits; 0: bfloat16 is used."""
    if parameter.ndim < 2 or parameter.numel() < SMALLEST:
        return 0
    row = parameter.numel() // parameter.shape[0]
    longest = max(length for length in range(1, LONGEST_BLOCK + 1) if row % length == 0)
    return longest if longest >= SHORTEST_BLOCK else 0


def state_bytes(parameter: Tensor, state_dtype: StateDtype) -> int:
    """Return the bytes of both moments of a parameter between two steps."""
    length = parameter.numel()
    if state_dtype == "8bit" and (block := block_length(parameter)):
        return 2 * (length + 4 * length // block)
    return (8 if state_dtype == "float32" else 4) * length


def uniform_rows(parameter: Tensor, seed: int) -> Tensor:
    """Draw from [0, 1) for this rank's rows; each :data:`DRAWN_VALUES` of the whole parameter have their own seed."""
    result = torch.empty_like(_local(parameter), dtype=torch.float32, memory_format=torch.contiguous_format)
    flat, row = result.view(-1), parameter.shape[1:].numel()
    first = parameter.__create_chunk_list__()[0].offsets[0] * row if isinstance(parameter, DTensor) else 0
    last = first + len(flat)
    for start in range(first // DRAWN_VALUES * DRAWN_VALUES, last, DRAWN_VALUES):
        generator = torch.Generator(result.device).manual_seed(derive_seed(seed, start))
        count = min(DRAWN_VALUES, parameter.numel() - start)
        low, high = max(first, start), min(last, start + count)
        drawn = torch.rand(count, generator=generator, device=result.device)
        flat[low - first : high - first] = drawn[low - start : high - start]
    return result


def to_bfloat16(values: Tensor, noise: Tensor) -> Tensor:
    """Round float32 stochastically, by noise from [0, 1), to one of the two neighbours in bfloat16."""
    below = (noise * (1 << 16)).int()
    return ((values.view(torch.int32) + below) & -(1 << 16)).view(torch.float32).bfloat16()


def to_codes(values: Tensor, block: int, signed: bool, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Round values (R, ...) stochastically, by noise from [0, 1): uint8 codes (R, ...), float32 scales (R, blocks)."""
    table = levels(signed, values.device)
    blocks = values.flatten(1).unflatten(1, (-1, block))
    scales = blocks.abs().amax(-1)
    shares = blocks / scales.clamp(min=torch.finfo(torch.float32).tiny)[..., None]
    upper = torch.bucketize(shares, table, out_int32=True).clamp_(1, len(table) - 1)
    low, high = table[upper - 1], table[upper]
    if not signed:  # roots, whose squares are to be right on average
        shares, low, high = shares.square(), low.square(), high.square()
    rises = noise.view_as(shares) < (shares - low) / (high - low)
    return (upper - 1 + rises).to(torch.uint8).view(values.shape), scales


def from_codes(codes: Tensor, scales: Tensor, signed: bool) -> Tensor:
    """Invert :func:`to_codes` up to its rounding, in float32."""
    shares = levels(signed, codes.device)[codes.flatten(1).int()].unflatten(1, (scales.shape[1], -1))
    return (shares * scales[..., None]).view(codes.shape)


@cache
def levels(signed: bool, device: torch.device) -> Tensor:
    """Return the 256 levels relative to a block's largest value, ascending.

    Seven decades, each divided twice as finely as the one below it, with both signs if ``signed``; then 0 and 1.
    """
    table = [0.0, 1.0]
    for decade in range(7):
        edges = torch.linspace(0.1, 1, 2 ** (decade if signed else decade + 1) + 1, dtype=torch.float64)
        middles = ((edges[:-1] + edges[1:]) / 2 * 10.0 ** (decade - 6)).tolist()
        table += [*middles, *(-middle for middle in middles if signed)]
    return torch.tensor(sorted(table), dtype=torch.float32, device=device)


def _read(state: Mapping[str, Tensor], name: str, like: Tensor) -> Tensor:
    if name not in state:
        return torch.zeros_like(like, memory_format=torch.contiguous_format)
    stored = _local(state[name])
    if stored.dtype != torch.uint8:
        return stored.float()
    values = from_codes(stored, _local(state[f"{name}_scale"]), signed=name == "exp_avg")
    return values.square_() if name == "exp_avg_sq" else values


def _local(tensor: Any) -> Tensor:
    """Return this rank's shard."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
