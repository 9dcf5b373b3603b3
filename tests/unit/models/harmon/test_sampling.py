"""Harmon's guidance schedules."""

from dataclasses import replace

import pytest
import torch

from reca.models.sampling import Sampling
from reca.runtime.seeding import SampleRng
from tools.tiny_bases import harmon_tiny


def test_linear_guidance_rises_with_the_drawn_share(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, scales = harmon_tiny.build(), []
    original = model.network.mar.diffloss.sample

    def sample(condition, rng, temperature, unconditional, guidance_scale):  # type: ignore[no-untyped-def]
        scales.append((condition.shape[1], guidance_scale))
        return original(condition, rng, temperature, unconditional, guidance_scale)

    monkeypatch.setattr(model.network.mar.diffloss, "sample", sample)
    constant = Sampling(3.0, num_steps=5)
    for settings in (constant, replace(constant, guidance_schedule="linear")):
        model.generate(["a red circle"], settings, SampleRng([1]))
    assert {scale for _, scale in scales[:5]} == {3.0}
    visible, total = 0, model.spec.target_tokens
    for tokens, scale in scales[5:]:
        visible += tokens
        still_hidden = max(total - visible, 1)  # official: at least one, even after the last round
        assert scale == pytest.approx(1 + 2.0 * (total - still_hidden) / total)
    assert visible == total
