"""The mixture of transformers: attention by blocks gives what attention by masks gives."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Qwen2Config

from reca.models.bagel.packing import Segment, pack
from reca.models.bagel.transformer import MixtureOfTransformers

WIDTH = 32


def network() -> MixtureOfTransformers:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=50,
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
    )
    return MixtureOfTransformers(config).double()


@torch.no_grad()  # PyTorch's attention by blocks has no backward pass on the CPU; `make gpu-check` compares gradients
def outcome(model: MixtureOfTransformers, lengths: list[tuple[int, int, int]], flex: bool) -> list[torch.Tensor]:
    """Last states of samples that see an image, read a text and draw an image."""
    torch.manual_seed(1)
    model.flex_attention = flex

    def tokens(number: int) -> torch.Tensor:
        return torch.randn(number, WIDTH, dtype=torch.float64)

    samples = [
        [
            Segment(tokens(seen + 2)),
            Segment(tokens(text), causal=True),
            *([Segment(tokens(2), tokens(drawn))] if drawn else []),
        ]
        for seen, text, drawn in lengths
    ]
    batch = pack(samples, None, tokens(0))
    read, drawn, _ = model(batch.read, batch.drawn, batch.layout)
    real = [
        row[: seen + 2 + text + (2 if drawn_ else 0)] for row, (seen, text, drawn_) in zip(read, lengths, strict=True)
    ]
    return real + [row[:length] for row, length in zip(drawn, batch.drawn_lengths, strict=True)]


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 6), st.integers(0, 7)), min_size=1, max_size=3))
def test_blocks_and_masks_attend_alike(lengths: list[tuple[int, int, int]]) -> None:
    model = network()
    by_masks, by_blocks = (outcome(model, lengths, flex) for flex in (False, True))
    for ours, theirs in zip(by_blocks, by_masks, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
