"""AdamW whose two moments take two bytes or one a parameter between steps, in place of four.

The step itself is torch's, in float32, one parameter after the other. What is kept in between is

    bfloat16   the upper half of each float32
    8bit       the nearest of 256 levels, as a share of the largest value of a block (dynamic codes of Dettmers et al.,
               arXiv 2110.02861); of the second moment the root, so that both moments span as many decades

and both are rounded up or down by chance, in proportion. Rounded to the nearest, a second moment would stand still:
with beta = 0.999 a step moves it by 0.1 %, and neighbours are 0.4 % or more apart.
"""

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.adamw import adamw

from reca.runtime.seeding import derive_seed
from reca.training.fsdp import shard_like

Stored = Literal["bfloat16", "8bit"]
Moments = Literal["float32", "bfloat16", "8bit"]
MOMENTS = ("exp_avg", "exp_avg_sq")
LONGEST_BLOCK, SHORTEST_BLOCK = 256, 32
SMALLEST = 4096
"""Parameters with fewer values, vectors, and rows that do not divide into blocks take bfloat16 in place of 8 bits."""


class LowBitAdamW(torch.optim.AdamW):
    """AdamW with moments of few bytes; its state is tensors of the stored types, and is saved and loaded as such.

    Chance is a function of a parameter's place and step, so a resumed run and other processes round alike.

    Args:
        groups: As for ``torch.optim.AdamW``.
        stored: How moments are kept.
        lr, betas, eps: As for ``torch.optim.AdamW``.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        stored: Stored,
        lr: float,
        betas: tuple[float, float],
        eps: float,
    ) -> None:
        super().__init__(groups, lr=lr, betas=betas, eps=eps)
        self._stored: Stored = stored

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step of all parameters that have a gradient."""
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
        chance = torch.Generator(values.device).manual_seed(derive_seed("moments", number, int(steps)))
        for name, moment in zip(MOMENTS, moments, strict=True):
            for key, part in self._kept(name, moment, block_length(parameter), chance).items():
                state[key] = shard_like(parameter, part)

    def _kept(self, name: str, moment: Tensor, block: int, chance: torch.Generator) -> dict[str, Tensor]:
        if self._stored == "bfloat16" or not block:
            return {name: to_bfloat16(moment, chance)}
        codes, scales = to_codes(moment.sqrt() if name == "exp_avg_sq" else moment, block, name == "exp_avg", chance)
        return {name: codes, f"{name}_scale": scales}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put a state in place, with its types: torch would make every moment as wide as its parameter."""
        super().load_state_dict({**state_dict, "state": {}})
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for number, state in state_dict["state"].items():
            here = parameters[number].device
            self.state[parameters[number]] = {
                key: value.clone() if key == "step" else value.to(here, copy=True) for key, value in state.items()
            }


def block_length(parameter: Tensor) -> int:
    """Values that share a scale in 8 bits: neighbours in a row, which is all but the first axis; 0: there are none."""
    if parameter.ndim < 2 or parameter.numel() < SMALLEST:
        return 0
    row = parameter.numel() // parameter.shape[0]
    longest = max(length for length in range(1, LONGEST_BLOCK + 1) if row % length == 0)
    return longest if longest >= SHORTEST_BLOCK else 0


def state_bytes(parameter: Tensor, moments: Moments) -> int:
    """Bytes of both moments of a parameter between two steps."""
    length = parameter.numel()
    if moments == "8bit" and (block := block_length(parameter)):
        return 2 * (length + 4 * length // block)
    return (8 if moments == "float32" else 4) * length


def to_bfloat16(values: Tensor, chance: torch.Generator) -> Tensor:
    """Each float32 as one of its two neighbours in bfloat16, the nearer one more often."""
    below = torch.randint(1 << 16, values.shape, generator=chance, device=values.device, dtype=torch.int32)
    return ((values.view(torch.int32) + below) & -(1 << 16)).view(torch.float32).bfloat16()


def to_codes(values: Tensor, block: int, signed: bool, chance: torch.Generator) -> tuple[Tensor, Tensor]:
    """Each of values (R, ...) as one of its two neighbouring levels: codes like them, uint8, and scales (R, blocks)."""
    table = levels(signed, values.device)
    blocks = values.flatten(1).unflatten(1, (-1, block))
    scales = blocks.abs().amax(-1)
    shares = blocks / scales.clamp(min=torch.finfo(torch.float32).tiny)[..., None]
    upper = torch.bucketize(shares, table, out_int32=True).clamp_(1, len(table) - 1)
    low, high = table[upper - 1], table[upper]
    rises = torch.rand(shares.shape, generator=chance, device=values.device) < (shares - low) / (high - low)
    return (upper - 1 + rises).to(torch.uint8).view(values.shape), scales


def from_codes(codes: Tensor, scales: Tensor, signed: bool) -> Tensor:
    """What :func:`to_codes` kept, in float32."""
    shares = levels(signed, codes.device)[codes.flatten(1).int()].unflatten(1, (scales.shape[1], -1))
    return (shares * scales[..., None]).view(codes.shape)


@cache
def levels(signed: bool, device: torch.device) -> Tensor:
    """The 256 shares of a block's largest value that a code can mean, ascending.

    Seven decades, each divided twice as finely as the one below it, both signs if ``signed``; then 0 and 1.
    """
    found = [0.0, 1.0]
    for decade in range(7):
        edges = torch.linspace(0.1, 1, 2 ** (decade if signed else decade + 1) + 1, dtype=torch.float64)
        middles = ((edges[:-1] + edges[1:]) / 2 * 10.0 ** (decade - 6)).tolist()
        found += [*middles, *(-middle for middle in middles if signed)]
    return torch.tensor(sorted(found), dtype=torch.float32, device=device)


def _read(state: Mapping[str, Tensor], name: str, like: Tensor) -> Tensor:
    if name not in state:
        return torch.zeros_like(like, memory_format=torch.contiguous_format)
    kept = _local(state[name])
    if kept.dtype != torch.uint8:
        return kept.float()
    values = from_codes(kept, _local(state[f"{name}_scale"]), signed=name == "exp_avg")
    return values.square_() if name == "exp_avg_sq" else values


def _local(tensor: Any) -> Tensor:
    """This process's part of a tensor that may be sharded over processes."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
