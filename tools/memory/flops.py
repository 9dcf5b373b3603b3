"""Floating-point operations of a computation, counted while it runs: two per multiply-add.

Matrix products and convolutions are counted as torch.utils.flop_counter counts them. An attention of B samples, H query
heads, T queries and K keys of width D (values of width D') counts 2 B H T K (D + D') forward and twice that backward:
including masked pairs, excluding recomputation inside a kernel. These formulas replace torch's own, which count that
recomputation, refuse grouped keys in some versions and lack attention on a CPU. Norms, softmax and AdamW count zero.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, shape_wrapper

FORWARD = ("flash_attention", "efficient_attention", "cudnn_attention", "flash_attention_for_cpu")
BACKWARD = tuple(f"{name}_backward" for name in FORWARD)
"""Suffixes of the names of torch's attention operators."""


def attention(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any) -> int:
    """Return the operations of the forward pass, from shapes (B, H, T, D), (B, H', K, D) and (B, H', K, D')."""
    batch, heads, queries, width = query
    return 2 * batch * heads * queries * key[2] * (width + value[3])


def attention_backward(
    gradient: Sequence[int], query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any
) -> int:
    """Return the operations of the backward pass."""
    return 2 * attention(query, key, value)


class FlopCount(TorchDispatchMode):
    """Counts operations in its context. FlopCounterMode's module hooks would keep recomputed activations alive."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0
        self._formulas: dict[Any, Any] = dict(flop_registry)
        for names, formula in ((FORWARD, attention), (BACKWARD, attention_backward)):
            for name in names:
                if (operator := getattr(torch.ops.aten, f"_scaled_dot_product_{name}", None)) is not None:
                    self._formulas[operator] = shape_wrapper(formula)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if (formula := self._formulas.get(func.overloadpacket)) is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=result)
        return result


def flops_of(work: Callable[[], object]) -> int:
    """Run ``work`` once and return its operations."""
    with FlopCount() as counter:
        work()
    return int(counter.total)
