"""Charts, labels and thumbnails."""

import base64
import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from reca.evaluation.statistics import Delta
from reca.reporting.charts import PALETTE, Chart, Series, curve_chart, direction, forest_chart, thin
from reca.reporting.gallery import detected_objects
from reca.reporting.text import format_points
from reca.reporting.thumbnails import load_thumbnail


def svg_of(chart: Chart) -> str:
    prefix, data = chart.uri.split(",")
    assert prefix == "data:image/svg+xml;base64"
    return base64.b64decode(data).decode()


@pytest.mark.parametrize(("base", "aligned", "width"), [(0.0, 0.0, 0.0), (0.0, 1.0, 1.0), (1.0, 0.0, 0.3)])
def test_forest_chart_is_well_formed_for_any_score(base, aligned, width) -> None:
    delta = Delta(base, aligned, aligned - base, aligned - base - width / 2, aligned - base + width / 2)
    svg = svg_of(forest_chart("Drawing", [("overall", delta), ("a <b> & $x$", delta)]))
    labels = [text.text for text in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]
    assert {"overall", "a <b> & $x$", "score, %", "change, points"} <= set(labels)


def test_charts_use_the_colours_of_the_page() -> None:
    svg = svg_of(forest_chart("Drawing", [("overall", Delta(0.2, 0.5, 0.3, 0.2, 0.4))]))
    drawing = svg.replace(PALETTE.read_text(), "")
    assert "prefers-color-scheme: dark" in svg
    assert {"var(--up)", "var(--base)", "var(--aligned)", "var(--ink)"} <= set(re.findall(r"var\(--[a-z]+\)", drawing))
    assert not re.findall(r"#[0-9a-f]{6}", drawing)


def test_charts_are_the_same_bytes_for_the_same_input() -> None:
    rows = [("overall", Delta(0.2, 0.5, 0.3, 0.2, 0.4))]
    assert forest_chart("Drawing", rows) == forest_chart("Drawing", rows)


@pytest.mark.parametrize(
    ("low", "high", "expected"), [(0.1, 0.2, "up"), (-0.2, -0.1, "down"), (0.0, 0.1, "unclear"), (-0.1, 0.1, "unclear")]
)
def test_direction_needs_an_interval_without_zero(low, high, expected) -> None:
    assert direction(Delta(0.5, 0.5, (low + high) / 2, low, high)) == expected


def test_curve_chart_breaks_at_gaps_and_describes_its_ends() -> None:
    line = Series("training", "base", ((1, 4.0), (2, 3.0), (3, float("nan")), (4, 2.0), (5, 1.0)))
    chart = curve_chart("Loss", [line, Series("empty", "aligned", ())])
    assert chart.alt == "Loss. training: 4 at step 1, 1 at step 5"
    (path,) = re.findall(r'<path d="([^"]*)" clip-path[^>]*stroke: var\(--base\)', svg_of(chart))
    assert path.count("M") == 2


def test_curve_chart_cuts_outliers_off() -> None:
    points = [(float(x), 1000.0 if x < 2 else 1.0 + x / 200) for x in range(200)]
    svg = svg_of(curve_chart("Loss", [Series("training", "base", points)]))
    ticks = [float(t.text or "") for t in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]
    assert not [tick for tick in ticks if tick > 200]


def test_thin_keeps_the_level_of_long_curves() -> None:
    points = [(float(x), 3.0 + math.sin(x)) for x in range(10_000)]
    thinned = thin(points)
    assert len(thinned) == 240
    assert np.mean([y for _, y in thinned]) == pytest.approx(np.mean([y for _, y in points]), abs=0.01)


@pytest.mark.parametrize(("value", "text"), [(0.0421, "+4.2"), (-0.01, "−1.0"), (-0.0001, "0.0"), (0.0, "0.0")])
def test_format_points(value, text) -> None:
    assert format_points(value) == text


def test_small_thumbnails_grow_by_whole_numbers(tmp_path) -> None:
    Image.new("RGB", (24, 24), "red").save(tmp_path / "small.png")
    image = load_thumbnail(tmp_path / "small.png")
    assert image is not None
    assert (image.width, image.narrow_width, image.pixelated) == (96, 72, True)


def test_large_thumbnails_shrink_and_keep_their_shape(tmp_path) -> None:
    Image.effect_noise((900, 600), 80).convert("RGB").save(tmp_path / "large.png")
    image = load_thumbnail(tmp_path / "large.png")
    assert image is not None
    assert (image.width, image.height, image.pixelated) == (96, 64, False)
    assert len(image.uri) < 40_000


def test_load_thumbnail_returns_none_for_unreadable_files(tmp_path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n")
    assert load_thumbnail(tmp_path / "broken.png") is None
    assert load_thumbnail(tmp_path / "absent.png") is None
    assert load_thumbnail(tmp_path) is None


def test_detected_objects_are_counted() -> None:
    detail = {
        "seen": [{"name": "ring", "color": "red"}, {"name": "bar", "color": None}, {"name": "ring", "color": "red"}]
    }
    objects = detected_objects(detail) or ()
    assert [(item.label, item.color, item.count) for item in objects] == [("ring", "red", 2), ("bar", None, 1)]
    assert detected_objects({"seen": []}) == ()
    assert detected_objects({}) is None
