"""One picture that tells the run: inputs and what either model makes of them, and what that did to the scores."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reca.reporting.charts import direction
from reca.reporting.inputs import Measured, Pair, Record
from reca.reporting.text import benchmark_words, category_words, points
from reca.reporting.thumbnails import SMALL, open_picture

COLUMNS = 5
LABEL, GAP, HEAD = 0.95, 0.09, 0.7  # inches: room for a row's label, between two images, for what stands above
INK, SOFT, LINE = "#1b1d22", "#5a6070", "#e2dfd8"
COLORS = {"up": "#117a53", "down": "#b3372b", "unclear": "#7a7466"}


@dataclass(frozen=True)
class Grid:
    """Images in labelled rows."""

    rows: Sequence[tuple[str, Sequence[Path]]]
    """Label of a row and the images in it; none: there is nothing to show."""
    heads: Sequence[str] = ()
    """What stands above each column."""


def draw_overview(path: Path, pairs: Mapping[str, Pair], deltas: Mapping[str, Record], confidence: float) -> None:
    """Write the figure as PNG: images on the left where there are any, deltas with intervals on the right."""
    from matplotlib.figure import Figure

    grid = choose_images(pairs)
    # Agg with a fixed size and resolution and no date: the same inputs give the same bytes.
    figure = Figure(figsize=(12.8, 4.9), dpi=150, facecolor="white")
    panels: Any = figure.subfigures(1, 2, width_ratios=(1.32, 1), wspace=0.0) if grid.rows else [None, figure]
    if grid.rows:
        _draw_images(panels[0], grid)
    _draw_deltas(panels[1], deltas, confidence)
    figure.savefig(path, metadata={"Software": None})


def choose_images(pairs: Mapping[str, Pair]) -> Grid:
    """The first images of the reconstruction benchmark, else the first prompt of every drawing category."""
    for pair in pairs.values():
        rows = [row for row in pair.base.samples if "original" in row][:COLUMNS]
        if rows:
            originals = [pair.base.folder / str(row["original"]) for row in rows]
            ids = [str(row["prompt_id"]) for row in rows]
            return Grid([("input", originals), *((side.scores.which, _first(side, ids)) for side in pair.sides)])
    for pair in pairs.values():
        if any("file" in row for row in pair.base.samples):
            ids = [ids[0] for ids in pair.categories.values()][:COLUMNS]
            prompts = [str(pair.base.samples_of[prompt_id][0].get("prompt", "")) for prompt_id in ids]
            return Grid([(side.scores.which, _first(side, ids)) for side in pair.sides], prompts)
    return Grid([])


def _first(measured: Measured, ids: Sequence[str]) -> list[Path]:
    return [measured.folder / str(measured.samples_of[prompt_id][0].get("file")) for prompt_id in ids]


def _draw_images(panel: Any, grid: Grid) -> None:
    width, height = panel.bbox.width / panel.figure.dpi, panel.bbox.height / panel.figure.dpi  # inches
    columns, lines = max(len(paths) for _, paths in grid.rows), len(grid.rows)
    stride = min((width - LABEL - 0.1) / columns, (height - 0.2 - HEAD * bool(grid.heads)) / lines)
    top = (height + stride * lines) / 2

    def at(column: float, line: float) -> tuple[float, float]:
        return (LABEL + column * stride) / width, (top - line * stride) / height

    for number, (label, paths) in enumerate(grid.rows):
        x, y = at(0, number + 0.5)
        panel.text(x - 0.12 / width, y, label, ha="right", va="center", fontsize=13, color=INK)
        for column, path in enumerate(paths):
            left, bottom = at(column, number + 1)
            side = stride - GAP
            axis = panel.add_axes((left, bottom + GAP / 2 / height, side / width, side / height))
            axis.set_axis_off()
            image = open_picture(path)
            if image is not None:
                axis.imshow(image, interpolation="nearest" if max(image.size) <= SMALL else "antialiased")
    for column, head in enumerate(grid.heads):
        x, y = at(column + 0.5 - GAP / 2 / stride, 0)
        lines_of_head = textwrap.wrap(head, 17)
        text = "\n".join(lines_of_head[:4]).replace("$", r"\$")  # matplotlib reads $…$ as mathematics
        panel.text(x, y + 0.03 / height, text, ha="center", va="bottom", fontsize=9, color=SOFT)


def _draw_deltas(panel: Any, deltas: Mapping[str, Record], confidence: float) -> None:
    axis = panel.subplots()
    panel.subplots_adjust(left=0.31, right=0.97, top=0.86, bottom=0.12)
    y, labels = 0.0, []
    for name, delta in deltas.items():
        several = len(delta["categories"]) > 1
        _draw_row(axis, y, delta["overall"])
        labels.append((y, benchmark_words(name).short, True))
        for category, value in delta["categories"].items() if several else ():
            y += 1
            _draw_row(axis, y, value)
            labels.append((y, category_words(category), False))
        y += 1.5
    axis.axvline(0, color=SOFT, linewidth=1.2, zorder=0)
    axis.set_ylim(y - 0.8, -0.7)
    axis.set_yticks([place for place, _, _ in labels], [text for _, text, _ in labels])
    for text, (_, _, bold) in zip(axis.get_yticklabels(), labels, strict=True):
        text.set_fontweight("bold" if bold else "normal")
        text.set_color(INK)
    axis.tick_params(length=0, labelsize=10.5, labelcolor=SOFT)
    axis.tick_params(axis="y", labelcolor=INK)
    axis.grid(axis="x", color=LINE, linewidth=0.8)
    axis.set_axisbelow(True)
    axis.set_frame_on(False)
    low, high = axis.get_xlim()
    axis.set_xlim(low, high + 0.14 * (high - low))  # room for the numbers
    axis.set_title(
        f"aligned − base, points, with {100 * confidence:g} % intervals", loc="center", fontsize=11, color=SOFT, pad=10
    )


def _draw_row(axis: Any, y: float, delta: Record) -> None:
    color = COLORS[direction(delta["low"], delta["high"])]
    axis.plot([100 * delta["low"], 100 * delta["high"]], [y, y], color=color, linewidth=2.6, solid_capstyle="round")
    axis.plot([100 * delta["delta"]], [y], "o", color=color, markersize=7)
    axis.annotate(
        points(delta["delta"]), (100 * delta["high"], y), (7, 0), textcoords="offset points",
        ha="left", va="center", fontsize=9.5, color=color,
    )  # fmt: skip
