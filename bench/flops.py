"""Floating-point operations of some work, counted while it runs: two per multiply-add.

Matrix products and convolutions are counted as torch.utils.flop_counter counts them. An attention of B samples, H query
heads, T queries and K keys of width D (values of width D') counts 2 B H T K (D + D') forward and twice that backward:
masked pairs included, what a kernel computes again not. Ours, because torch's own formula counts that again, refuses
grouped keys in some versions, and knows no attention on a CPU. Everything else (norms, softmax, AdamW) counts nothing.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

FORWARD = ("flash_attention", "efficient_attention", "cudnn_attention", "flash_attention_for_cpu")
BACKWARD = tuple(f"{name}_backward" for name in FORWARD)
"""Endings of the names of torch's attention operators."""


def attention(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any) -> int:
    """Operations of the forward pass, from shapes (B, H, T, D), (B, H', K, D) and (B, H', K, D')."""
    batch, heads, queries, width = query
    return 2 * batch * heads * queries * key[2] * (width + value[3])


def attention_backward(
    gradient: Sequence[int], query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any
) -> int:
    """Operations of the backward pass."""
    return 2 * attention(query, key, value)


def flops_of(work: Callable[[], object]) -> int:
    """Run it once and count."""
    formulas: dict[Any, Any] = {}
    for names, formula in ((FORWARD, attention), (BACKWARD, attention_backward)):
        for name in names:
            if (operator := getattr(torch.ops.aten, f"_scaled_dot_product_{name}", None)) is not None:
                formulas[operator] = formula
    counter = FlopCounterMode(display=False, custom_mapping=formulas)
    with counter:
        work()
    return int(counter.get_total_flops())
