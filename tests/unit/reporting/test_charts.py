"""Scales, charts, words and pictures."""

import math
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from reca.reporting.charts import Series, axis, curves, delta_scale, direction, dumbbell, interval, thinned
from reca.reporting.gallery import seen
from reca.reporting.scales import nice_scale
from reca.reporting.svg import tag
from reca.reporting.text import points
from reca.reporting.thumbnails import load_picture

FINITE = st.floats(-1e6, 1e6).map(lambda value: round(value, 6))
SHARE = st.floats(0, 1)


@given(st.lists(FINITE, min_size=1, max_size=20))
@example([20021.0, -1e-05])
def test_scale_holds_its_values_between_round_ticks(values) -> None:
    scale = nice_scale(values)
    rounding = 2e-9 * (scale.high - scale.low)  # far less than a pixel
    assert scale.low <= min(values) + rounding
    assert scale.high >= max(values) - rounding
    assert list(scale.ticks) == sorted(set(scale.ticks))
    assert 2 <= len(scale.ticks) <= 12
    steps = np.diff(scale.ticks)
    assert np.allclose(steps, steps[0])
    mantissa = steps[0] / 10 ** math.floor(math.log10(steps[0]) + 1e-9)
    assert min(abs(mantissa - nice) for nice in (1, 2, 5, 10)) < 1e-6


def test_scale_ignores_what_is_not_finite() -> None:
    assert nice_scale([float("nan"), float("inf"), 0.0, 1.0]) == nice_scale([0.0, 1.0])
    assert nice_scale([float("nan")]).low < nice_scale([float("nan")]).high


@given(SHARE, SHARE, SHARE)
def test_rows_are_well_formed_and_inside(base, aligned, width) -> None:
    low, high = aligned - base - width / 2, aligned - base + width / 2
    scale = delta_scale([low, high])
    for drawing in (
        dumbbell("a <b>", base, aligned),
        interval("a & b", aligned - base, low, high, scale),
        axis(scale, True),
    ):
        tree = ElementTree.fromstring(str(drawing))
        for element in tree.iter():
            for name in ("cx", "x1", "x2", "x"):
                if name in element.attrib:
                    assert 0 <= float(element.attrib[name].rstrip("%")) <= 100


def test_dumbbell_stands_where_the_scores_are() -> None:
    circles = [e.attrib["cx"] for e in ElementTree.fromstring(str(dumbbell("x", 0.25, 0.8))).iter("circle")]
    assert circles == ["25.00%", "80.00%"]


@pytest.mark.parametrize(
    ("low", "high", "expected"), [(0.1, 0.2, "up"), (-0.2, -0.1, "down"), (0.0, 0.1, "unclear"), (-0.1, 0.1, "unclear")]
)
def test_direction(low, high, expected) -> None:
    assert direction(low, high) == expected


def test_curves_break_at_gaps_and_tell_their_ends() -> None:
    line = Series("training", "train", ((1, 4.0), (2, float("nan")), (3, 2.0), (4, 1.0)))
    tree = ElementTree.fromstring(str(curves("Loss", [line, Series("empty", "held-out", ())])))
    assert tree.attrib["aria-label"] == "Loss. training: 4 at step 1, 1 at step 4"
    paths = [e.attrib["d"] for e in tree.iter("path")]
    assert len(paths) == 1
    assert paths[0].count("M") == 2


def test_long_curves_are_thinned_to_their_level() -> None:
    points_ = [(float(x), 3.0 + math.sin(x)) for x in range(10_000)]
    kept = thinned(points_)
    assert len(kept) == 240
    assert np.mean([y for _, y in kept]) == pytest.approx(np.mean([y for _, y in points_]), abs=0.01)


def test_svg_escapes() -> None:
    assert str(tag("text", '<&"', title='"><script>')) == '<text title="&#34;&gt;&lt;script&gt;">&lt;&amp;&#34;</text>'


@pytest.mark.parametrize(("value", "text"), [(0.0421, "+4.2"), (-0.01, "−1.0"), (-0.0001, "0.0"), (0.0, "0.0")])
def test_points(value, text) -> None:
    assert points(value) == text


def test_small_pictures_grow_by_whole_numbers(tmp_path) -> None:
    Image.new("RGB", (24, 24), "red").save(tmp_path / "small.png")
    picture = load_picture(tmp_path / "small.png")
    assert picture is not None
    assert (picture.width, picture.narrow_width, picture.pixelated) == (96, 72, True)


def test_large_pictures_shrink_and_keep_their_shape(tmp_path) -> None:
    Image.effect_noise((900, 600), 80).convert("RGB").save(tmp_path / "large.png")
    picture = load_picture(tmp_path / "large.png")
    assert picture is not None
    assert (picture.width, picture.height, picture.pixelated) == (96, 64, False)
    assert len(picture.uri) < 40_000


def test_what_is_no_picture_is_none(tmp_path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n")
    assert load_picture(tmp_path / "broken.png") is None
    assert load_picture(tmp_path / "absent.png") is None
    assert load_picture(tmp_path) is None


def test_equal_things_are_counted() -> None:
    detail = {
        "seen": [{"name": "ring", "color": "red"}, {"name": "bar", "color": None}, {"name": "ring", "color": "red"}]
    }
    assert [(thing.label, thing.color, thing.count) for thing in seen(detail) or ()] == [
        ("ring", "red", 2),
        ("bar", None, 1),
    ]
    assert seen({"seen": []}) == ()
    assert seen({}) is None
