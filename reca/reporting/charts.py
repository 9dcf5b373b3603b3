"""Every figure of the report, drawn by matplotlib: the charts of the page (SVG) and the overview of a run (PNG).

A chart's colours are those of the page (``templates/palette.css``), in light and in dark mode. The same inputs give the
same bytes: sizes are fixed, and neither dates nor random identifiers are written.
"""

import base64
import io
import math
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from reca.evaluation.statistics import BenchmarkDelta, Delta
from reca.reporting.inputs import BenchmarkResult, ResultPair
from reca.reporting.text import benchmark_text, category_label, format_points
from reca.reporting.thumbnails import PIXELATED_MAX_SIZE, open_image

PALETTE = Path(__file__).parent / "templates/palette.css"
COLUMNS = 5
LABEL, GAP, HEAD = 0.95, 0.09, 0.7  # inches: width of a row's label, space between images, height of the prompts
MAX_POINTS = 240


@dataclass(frozen=True)
class Chart:
    """An SVG image for the page."""

    uri: str
    alt: str


@dataclass(frozen=True)
class Series:
    """A line of a curve chart."""

    name: str
    color: str
    """Name of a colour of the palette."""
    points: Sequence[tuple[float, float]]
    """(x, y), x ascending; a y that is not finite breaks the line."""


@dataclass(frozen=True)
class ImageGrid:
    """Images in labelled rows."""

    rows: Sequence[tuple[str, Sequence[Path]]]
    """The label and the images of every row; empty if the run has no images."""
    prompts: Sequence[str] = ()
    """Headings of the columns."""


def direction(delta: Delta) -> str:
    """Return ``up`` or ``down`` when the interval of a delta excludes zero, else ``unclear``."""
    return "up" if delta.low > 0 else "down" if delta.high < 0 else "unclear"


def forest_chart(title: str, rows: Sequence[tuple[str, Delta]]) -> Chart:
    """Draw the scores of both models and the change with its interval, one line per category."""
    with _new_figure(5.0, 0.62 + 0.31 * len(rows)) as figure:
        scores, changes = figure.subplots(1, 2, sharey=True)
        figure.subplots_adjust(left=0.29, right=0.985, top=1 - 0.48 / figure.get_figheight(), bottom=0.01, wspace=0.13)
        for y, (_, delta) in enumerate(rows):
            join = _color("aligned" if delta.aligned >= delta.base else "down")
            scores.plot([100 * delta.base, 100 * delta.aligned], [y, y], color=join, linewidth=2.2, alpha=0.4)
            scores.plot(
                [100 * delta.base], [y], "o", markersize=7, markeredgewidth=1.8,
                markerfacecolor=_color("card"), markeredgecolor=_color("base"),
            )  # fmt: skip
            scores.plot([100 * delta.aligned], [y], "o", markersize=5.5, color=_color("aligned"))
            _draw_interval(changes, y, delta)
        scores.set_xlim(-4, 104)
        scores.set_xticks([0, 25, 50, 75, 100])
        _style_axis(scores, "score, %")
        _style_axis(changes, "change, points")
        changes.axvline(0, color=_color("soft"), linewidth=1.2, zorder=0)
        _label_rows(scores, [(y, label, y == 0) for y, (label, _) in enumerate(rows)])
        scores.set_ylim(len(rows) - 0.45, -0.55)
        for axis in (scores, changes):
            axis.xaxis.tick_top()
        return _as_chart(figure, f"{title}: score of both models and change, by category; the table has the numbers")


def curve_chart(title: str, series: Sequence[Series]) -> Chart:
    """Draw lines over optimizer steps; at least one must hold a finite point.

    The largest two per cent of the values may be cut off: the first steps must not flatten all others.
    """
    lines = [line for line in series if any(math.isfinite(y) for _, y in line.points)]
    with _new_figure(4.1, 2.35) as figure:
        axis = figure.subplots()
        figure.subplots_adjust(left=0.14, right=0.97, top=0.95, bottom=0.12)
        for line in lines:
            marker = "o" if len(line.points) <= 12 else ""
            x, y = np.transpose(thin(line.points))
            axis.plot(x, y, color=_color(line.color), linewidth=1.6, marker=marker, markersize=4)
        values = sorted(y for line in lines for _, y in line.points if math.isfinite(y))
        low, high = values[0], values[math.ceil(len(values) * 0.98) - 1]
        margin = 0.05 * (high - low) or 0.5 * abs(low) or 1.0
        axis.set_ylim(low - margin, high + margin)
        _style_axis(axis, "")
        axis.grid(axis="y", color=_color("grid"), linewidth=0.8)
        axis.locator_params(nbins=5)
        return _as_chart(figure, f"{title}. {'; '.join(map(_describe_ends, lines))}")


def thin(points: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    """Return at most ``MAX_POINTS`` points: means over equal runs, so that a long curve keeps its level."""
    if len(points) <= MAX_POINTS:
        return points
    return [tuple(run.mean(axis=0)) for run in np.array_split(np.array(points), MAX_POINTS)]


def draw_overview(
    path: Path, pairs: Mapping[str, ResultPair], deltas: Mapping[str, BenchmarkDelta], confidence: float
) -> None:
    """Write the overview as PNG: images on the left if the run has any, deltas with intervals on the right."""
    grid = choose_images(pairs)
    with _new_figure(12.8, 4.9) as figure:
        panels = figure.subfigures(1, 2, width_ratios=(1.32, 1), wspace=0.0) if grid.rows else [None, figure]
        if grid.rows:
            _draw_images(panels[0], grid)
        _draw_deltas(panels[1], deltas, confidence)
        figure.savefig(path, dpi=150, facecolor="white", metadata={"Software": None})


def choose_images(pairs: Mapping[str, ResultPair]) -> ImageGrid:
    """Return the first images of the reconstruction benchmark, else the first prompt of every drawing category."""
    for pair in pairs.values():
        rows = [row for row in pair.base.samples if "original" in row][:COLUMNS]
        if rows:
            originals = [pair.base.folder / str(row["original"]) for row in rows]
            ids = [str(row["prompt_id"]) for row in rows]
            return ImageGrid([("input", originals), *_first_images(pair, ids)])
    for pair in pairs.values():
        if any("file" in row for row in pair.base.samples):
            ids = [ids[0] for ids in pair.categories.values()][:COLUMNS]
            prompts = [str(pair.base.samples_by_prompt[prompt_id][0].get("prompt", "")) for prompt_id in ids]
            return ImageGrid(_first_images(pair, ids), prompts)
    return ImageGrid([])


def _first_images(pair: ResultPair, ids: Sequence[str]) -> list[tuple[str, list[Path]]]:
    def files(result: BenchmarkResult) -> list[Path]:
        return [result.folder / str(result.samples_by_prompt[prompt_id][0].get("file")) for prompt_id in ids]

    return [("base", files(pair.base)), ("aligned", files(pair.aligned))]


def _draw_images(panel: Any, grid: ImageGrid) -> None:
    width, height = panel.bbox.width / panel.figure.dpi, panel.bbox.height / panel.figure.dpi  # inches
    columns, lines = max(len(paths) for _, paths in grid.rows), len(grid.rows)
    stride = min((width - LABEL - 0.1) / columns, (height - 0.2 - HEAD * bool(grid.prompts)) / lines)
    top = (height + stride * lines) / 2

    def at(column: float, line: float) -> tuple[float, float]:
        return (LABEL + column * stride) / width, (top - line * stride) / height

    for number, (label, paths) in enumerate(grid.rows):
        x, y = at(0, number + 0.5)
        panel.text(x - 0.12 / width, y, label, ha="right", va="center", fontsize=13, color=_color("ink"))
        for column, path in enumerate(paths):
            x_left, y_bottom = at(column, number + 1)
            side = stride - GAP
            axis = panel.add_axes((x_left, y_bottom + GAP / 2 / height, side / width, side / height))
            axis.set_axis_off()
            image = open_image(path)
            if image is not None:
                pixelated = max(image.size) <= PIXELATED_MAX_SIZE
                axis.imshow(image, interpolation="nearest" if pixelated else "antialiased")
    for column, prompt in enumerate(grid.prompts):
        x, y = at(column + 0.5 - GAP / 2 / stride, 0)
        text = "\n".join(textwrap.wrap(prompt, 17)[:4])
        panel.text(x, y + 0.03 / height, text, ha="center", va="bottom", fontsize=9, color=_color("soft"))


def _draw_deltas(panel: Any, deltas: Mapping[str, BenchmarkDelta], confidence: float) -> None:
    axis = panel.subplots()
    panel.subplots_adjust(left=0.31, right=0.97, top=0.86, bottom=0.12)
    y, labels = 0.0, []
    for name, benchmark in deltas.items():
        rows = [(benchmark_text(name).short, benchmark.overall)]
        if len(benchmark.categories) > 1:
            rows += [(category_label(category), delta) for category, delta in benchmark.categories.items()]
        for number, (label, delta) in enumerate(rows):
            _draw_interval(axis, y + number, delta)
            end = (100 * delta.high, y + number)
            axis.annotate(
                format_points(delta.delta), end, (7, 0), textcoords="offset points",
                ha="left", va="center", fontsize=9.5, color=_color(direction(delta)),
            )  # fmt: skip
            labels.append((y + number, label, number == 0))
        y += len(rows) + 0.5
    axis.axvline(0, color=_color("soft"), linewidth=1.2, zorder=0)
    axis.set_ylim(y - 0.8, -0.7)
    _style_axis(axis, "", size=10.5)
    _label_rows(axis, labels)
    low, high = axis.get_xlim()
    axis.set_xlim(low, high + 0.14 * (high - low))  # room for the numbers
    title = f"aligned − base, points, with {100 * confidence:g} % intervals"
    axis.set_title(title, loc="center", fontsize=11, color=_color("soft"), pad=10)


def _draw_interval(axis: Any, y: float, delta: Delta) -> None:
    color = _color(direction(delta))
    axis.plot([100 * delta.low, 100 * delta.high], [y, y], color=color, linewidth=2.6, solid_capstyle="round")
    fill = _color("card") if direction(delta) == "unclear" else color
    axis.plot([100 * delta.delta], [y], "o", color=color, markerfacecolor=fill, markersize=7, markeredgewidth=1.8)


def _style_axis(axis: Any, title: str, size: float = 9) -> None:
    axis.set_frame_on(False)
    axis.set_axisbelow(True)
    axis.grid(axis="x", color=_color("grid"), linewidth=0.8)
    axis.tick_params(length=0, labelsize=size, labelcolor=_color("soft"))
    if title:
        axis.set_title(title, loc="left", fontsize=size, color=_color("soft"))


def _label_rows(axis: Any, labels: Sequence[tuple[float, str, bool]]) -> None:
    """Name the rows: height, label, and whether it is printed bold."""
    axis.set_yticks([y for y, _, _ in labels], [label for _, label, _ in labels], color=_color("ink"))
    for text, (_, _, bold) in zip(axis.get_yticklabels(), labels, strict=True):
        text.set_fontweight("bold" if bold else "normal")


def _describe_ends(line: Series) -> str:
    finite = [(x, y) for x, y in line.points if math.isfinite(y)]
    (first_x, first_y), (last_x, last_y) = finite[0], finite[-1]
    return f"{line.name}: {first_y:.4g} at step {first_x:.6g}, {last_y:.4g} at step {last_x:.6g}"


@contextmanager
def _new_figure(width: float, height: float) -> Iterator[Any]:
    """Yield an empty figure (inches) whose text is stored as text (``$…$`` too) and whose ids are deterministic."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "reca", "text.parse_math": False}):
        yield Figure(figsize=(width, height), facecolor="none")


def _as_chart(figure: Any, alt: str) -> Chart:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = buffer.getvalue()
    for name, color in _palette().items():
        svg = svg.replace(color, f"var(--{name})")
    start = svg.index("<defs>")
    svg = f"{svg[svg.index('<svg') : start]}<style>{PALETTE.read_text(encoding='utf-8')}</style>{svg[start:]}"
    return Chart(f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}", alt)


@cache
def _palette() -> dict[str, str]:
    """Return the colours of light mode by name; they come first in the file."""
    light = PALETTE.read_text(encoding="utf-8").partition("@media")[0]
    return dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6});", light))


def _color(name: str) -> str:
    return _palette()[name]
