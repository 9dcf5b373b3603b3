"""BAGEL's guidance against the formulas of the official sampler, written out here."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from reca.models.bagel import sampling as bagel
from reca.models.bagel.model import Bagel
from reca.models.sampling import Sampling
from reca.runtime.seeding import SampleRng
from tools.tiny_bases import bagel_tiny

PROMPT = ["a photo of a red circle"]


@pytest.fixture(scope="module")
def model() -> Bagel:
    torch.manual_seed(0)
    return bagel_tiny.build()


def velocities(*lengths: float) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [length * torch.randn(1, 5, 8, generator=generator) for length in lengths]


@pytest.mark.parametrize("minimum", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("image_scale", [1.0, 1.5])
@pytest.mark.parametrize("renorm", ["global", "channel", "text_channel"])
def test_guided_velocities_are_shortened_down_to_the_minimum(renorm: str, image_scale: float, minimum: float) -> None:
    full, text, image = velocities(1.0, 2.0, 0.5)
    settings = Sampling(4.0, image_guidance_scale=image_scale, guidance_renorm=renorm, guidance_renorm_min=minimum)
    ours = bagel.guide(settings, full, text, *([image] if image_scale > 1 else []))
    guided = text + 4.0 * (full - text)
    dims = None if renorm == "global" else -1
    if renorm == "text_channel":
        scale = (full.norm(dim=-1, keepdim=True) / (guided.norm(dim=-1, keepdim=True) + 1e-8)).clamp(minimum, 1.0)
        guided = guided * scale
        official = guided if image_scale <= 1 else image + image_scale * (guided - image)
    else:
        guided = guided if image_scale <= 1 else image + image_scale * (guided - image)
        official = guided * (full.norm(dim=dims, keepdim=True) / (guided.norm(dim=dims, keepdim=True) + 1e-8)).clamp(
            minimum, 1.0
        )
    torch.testing.assert_close(ours, official)


def counted(model: Bagel, settings: Sampling, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sequences per step of drawing an image."""
    counts, original = [], model.network.velocities

    def velocities(samples: list[object], *rest: object) -> object:
        counts.append(len(samples))
        return original(samples, *rest)

    monkeypatch.setattr(model.network, "velocities", velocities)
    model.generate(PROMPT, settings, SampleRng([1]))
    return counts


def test_the_interval_is_compared_in_float32_as_the_times_are(model: Bagel, monkeypatch: pytest.MonkeyPatch) -> None:
    model.sampling_shift = 1.0
    times = torch.linspace(1, 0, 11)[:-1]
    edge = next(float(f"{time:.1f}") for time in times.tolist() if float(f"{time:.1f}") < time)
    official = [2 if bool(time > edge) else 1 for time in times]
    assert official != [2 if time > edge else 1 for time in times.tolist()], "an edge that float64 gets wrong"
    settings = Sampling(4.0, num_steps=10, guidance_interval=(edge, 1.0))
    assert counted(model, settings, monkeypatch) == official


@pytest.mark.parametrize(("text", "image", "sequences"), [(1.0, 2.0, 1), (0.5, 2.0, 1), (2.0, 1.0, 2), (2.0, 1.5, 3)])
def test_without_text_guidance_there_is_no_image_guidance(
    model: Bagel, monkeypatch: pytest.MonkeyPatch, text: float, image: float, sequences: int
) -> None:
    settings = Sampling(text, num_steps=2, image_guidance_scale=image)
    assert counted(model, settings, monkeypatch) == [sequences] * 2
    counts: list[int] = []
    original = model.network.velocities
    monkeypatch.setattr(
        model.network, "velocities", lambda samples, *rest: counts.append(len(samples)) or original(samples, *rest)
    )
    model.edit([torch.zeros(3, 24, 24)], PROMPT, settings, SampleRng([1]))
    assert counts == [sequences] * 2


def test_renormalisation_reaches_drawing_and_editing(model: Bagel) -> None:
    base = Sampling(6.0, num_steps=2, image_guidance_scale=2.0)
    for change in ({"guidance_renorm_min": 1.0}, {"guidance_renorm": "channel"}, {"guidance_interval": (0.99, 1.0)}):
        images = [model.generate(PROMPT, replace(base, **c), SampleRng([1])) for c in ({}, change)]
        edits = [
            model.edit([torch.zeros(3, 24, 24)], PROMPT, replace(base, **c), SampleRng([1]))[0] for c in ({}, change)
        ]
        assert not torch.equal(*images), change
        assert not torch.equal(*edits), change
