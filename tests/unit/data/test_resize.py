"""How images are resized where they keep their shape: the official arithmetic, and what follows from it."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from reca.data.resize import MAX_PIXELS, Resize

UNDERSTOOD, DRAWN = Resize("fit", 224, 224, 14), Resize("fit", 1024, 512, 16)
SIDE = st.integers(1, 20_000)
BOTH = pytest.mark.parametrize("resize", [UNDERSTOOD, DRAWN])


def official(height: int, width: int, largest: int, smallest: int, stride: int) -> tuple[int, int]:
    """MaxLongEdgeMinShortEdgeResize, step by step as BAGEL's data/transforms.py takes them."""

    def apply_scale(height: int, width: int, scale: float) -> tuple[int, int]:
        sides = round(height * scale), round(width * scale)
        return tuple(max(stride, int(round(side / stride) * stride)) for side in sides)

    scale = min(largest / max(height, width), 1.0)
    scale = max(scale, smallest / min(height, width))
    height, width = apply_scale(height, width, scale)
    if height * width > MAX_PIXELS:
        height, width = apply_scale(height, width, MAX_PIXELS / (height * width))
    if max(height, width) > largest:
        height, width = apply_scale(height, width, largest / max(height, width))
    return height, width


@BOTH
@given(height=SIDE, width=SIDE)
@example(height=16, width=4096)  # more pixels than allowed on the way
def test_sizes_are_the_official_ones(resize: Resize, height: int, width: int) -> None:
    assert resize.size(height, width) == official(height, width, resize.max_side, resize.min_side, resize.multiple)


@BOTH
@given(height=SIDE, width=SIDE)
def test_sizes_are_within_the_limits(resize: Resize, height: int, width: int) -> None:
    size = resize.size(height, width)
    assert all(side % resize.multiple == 0 and 0 < side <= resize.max_side for side in size)
    assert min(size) >= resize.min_side or max(size) == resize.max_side
    assert resize.size(width, height) == size[::-1]


@given(side=SIDE, ratio=st.floats(1, 4))
def test_shapes_are_kept_to_a_step(side: int, ratio: float) -> None:
    height, width = side * 4, round(side * 4 * ratio)
    drawn = DRAWN.size(height, width)
    exact = drawn[1] * height / width
    assert abs(drawn[0] - exact) <= 1.5 * DRAWN.multiple  # both sides are rounded, on the way too


@pytest.mark.parametrize(
    ("resize", "given_size", "expected"),
    [
        (UNDERSTOOD, (768, 1024), (168, 224)),  # these two stand in the authors' code and paper
        (UNDERSTOOD, (500, 1000), (112, 224)),
        (UNDERSTOOD, (10, 10), (224, 224)),
        (DRAWN, (1024, 1024), (1024, 1024)),
        (DRAWN, (768, 1024), (768, 1024)),
        (DRAWN, (300, 400), (512, 688)),
        (DRAWN, (100, 3000), (32, 1024)),
        (Resize("crop", 24), (10, 50), (24, 24)),
        (Resize("stretch", 24), (10, 50), (24, 24)),
    ],
)
def test_known_sizes(resize: Resize, given_size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert resize.size(*given_size) == expected
