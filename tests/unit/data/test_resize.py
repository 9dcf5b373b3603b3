"""Sizes of images that keep their aspect ratio, compared with BAGEL's arithmetic."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from reca.data.resize import MAX_PIXELS, Resize

UNDERSTANDING, GENERATION = Resize("fit", 224, 224, 14), Resize("fit", 1024, 512, 16)
SIDE = st.integers(1, 20_000)
BOTH = pytest.mark.parametrize("resize", [UNDERSTANDING, GENERATION])


def official(height: int, width: int, largest: int, smallest: int, stride: int) -> tuple[int, int]:
    """Compute MaxLongEdgeMinShortEdgeResize in the steps of BAGEL's data/transforms.py."""

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
def test_sizes_equal_the_official_ones(resize: Resize, height: int, width: int) -> None:
    assert resize.size(height, width) == official(height, width, resize.max_side, resize.min_side, resize.multiple)


@BOTH
@given(height=SIDE, width=SIDE)
def test_sizes_are_within_the_limits(resize: Resize, height: int, width: int) -> None:
    size = resize.size(height, width)
    assert all(side % resize.multiple == 0 and 0 < side <= resize.max_side for side in size)
    assert min(size) >= resize.min_side or max(size) == resize.max_side
    assert resize.size(width, height) == size[::-1]


@given(side=SIDE, ratio=st.floats(1, 4))
def test_aspect_ratio_is_kept_up_to_rounding(side: int, ratio: float) -> None:
    height, width = side * 4, round(side * 4 * ratio)
    size = GENERATION.size(height, width)
    exact = size[1] * height / width
    assert abs(size[0] - exact) <= 1.5 * GENERATION.multiple  # both sides are rounded, in three steps


@pytest.mark.parametrize(
    ("resize", "given_size", "expected"),
    [
        (UNDERSTANDING, (768, 1024), (168, 224)),  # these two are in the authors' code and paper
        (UNDERSTANDING, (500, 1000), (112, 224)),
        (UNDERSTANDING, (10, 10), (224, 224)),
        (GENERATION, (1024, 1024), (1024, 1024)),
        (GENERATION, (768, 1024), (768, 1024)),
        (GENERATION, (300, 400), (512, 688)),
        (GENERATION, (100, 3000), (32, 1024)),
        (Resize("crop", 24), (10, 50), (24, 24)),
        (Resize("stretch", 24), (10, 50), (24, 24)),
    ],
)
def test_known_sizes(resize: Resize, given_size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert resize.size(*given_size) == expected
