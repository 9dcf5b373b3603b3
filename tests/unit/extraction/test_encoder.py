"""A forbidden stream raises on every draw."""

from collections.abc import Callable

import pytest
import torch

from reca.extraction.encoder import ForbiddenRng
from reca.runtime.seeding import SampleRng

DRAWS: list[Callable[[SampleRng], object]] = [
    lambda rng: rng.normal("x"),
    lambda rng: rng.normals("x", [(1,)]),
    lambda rng: rng.uniform("x"),
    lambda rng: rng.permutation("x", 3),
    lambda rng: rng.categorical("x", torch.zeros(1, 2)),
    lambda rng: rng.keys("x"),
]


@pytest.mark.parametrize("draw", DRAWS)
def test_forbidden_rng_raises_on_every_draw(draw: Callable[[SampleRng], object]) -> None:
    draw(SampleRng([0]))
    with pytest.raises(TypeError, match="the target is stored"):
        draw(ForbiddenRng("the target is stored"))
