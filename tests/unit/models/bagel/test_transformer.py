"""FlexAttention and dense masks give the mixture of transformers the same outputs."""

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


@torch.no_grad()  # FlexAttention has no backward pass on the CPU; `make gpu-check` compares gradients
def last_states(model: MixtureOfTransformers, lengths: list[tuple[int, int, int]], flex: bool) -> list[torch.Tensor]:
    """Return last hidden states of samples with an image, a text and latents of the given lengths."""
    torch.manual_seed(1)
    model.flex_attention = flex

    def tokens(number: int) -> torch.Tensor:
        return torch.randn(number, WIDTH, dtype=torch.float64)

    samples = [
        [
            Segment(tokens(image + 2)),
            Segment(tokens(text), causal=True),
            *([Segment(tokens(2), tokens(latents))] if latents else []),
        ]
        for image, text, latents in lengths
    ]
    batch = pack(samples, None, tokens(0))
    understanding, generation, _ = model(batch.understanding, batch.generation, batch.layout)
    states = []
    for row, (image, text, latents) in zip(understanding, lengths, strict=True):
        states.append(row[: image + 2 + text + (2 if latents else 0)])
    return states + [row[:length] for row, length in zip(generation, batch.latent_lengths, strict=True)]


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 6), st.integers(0, 7)), min_size=1, max_size=3))
def test_flex_attention_equals_dense_masks(lengths: list[tuple[int, int, int]]) -> None:
    model = network()
    dense, flex = (last_states(model, lengths, flex) for flex in (False, True))
    for actual, expected in zip(flex, dense, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)
