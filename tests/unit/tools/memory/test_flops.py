"""Counts of operations, on any device and with grouped keys."""

import torch
import torch.nn.functional as F

from tools.memory import flops


def test_product_counts_two_per_multiply_add() -> None:
    left, right = torch.ones(3, 4), torch.ones(4, 5, requires_grad=True)
    assert flops.flops_of(lambda: left @ right) == 2 * 3 * 4 * 5
    assert flops.flops_of(lambda: (left @ right).sum().backward()) == 2 * (2 * 3 * 4 * 5)


def test_attention_counts_both_products() -> None:
    query, key, value = (1, 4, 6, 8), (1, 2, 5, 8), (1, 2, 5, 8)
    assert flops.attention(query, key, value) == 2 * (2 * 4 * 6 * 5 * 8)
    assert flops.attention_backward(query, query, key, value) == 2 * flops.attention(query, key, value)


def test_attention_is_counted_on_a_cpu() -> None:
    tokens = torch.randn(1, 2, 6, 8, requires_grad=True)
    forward = 2 * (2 * 2 * 6 * 6 * 8)
    assert (
        flops.flops_of(lambda: F.scaled_dot_product_attention(tokens, tokens, tokens).sum().backward()) == 3 * forward
    )
