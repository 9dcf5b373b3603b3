"""One picture that tells the run: inputs and what either model makes of them, and what that did to the scores."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reca.reporting.charts import direction
from reca.reporting.gallery import files_of
from reca.reporting.inputs import Pair, Record
from reca.reporting.words import benchmark_words, category_words, points

COLUMNS = 7
INK, SOFT, LINE = "#1b1d22", "#5a6070", "#e2dfd8"
COLORS = {"up": "#117a53", "down": "#b3372b", "unclear": "#7a7466"}
Rows = Sequence[tuple[str, Sequence[Path]]]
"""Label of a row and the images in it."""


def draw_overview(path: Path, pairs: Mapping[str, Pair], deltas: Mapping[str, Record], confidence: float) -> None:
    """Write the figure as PNG: images on the left where there are any, deltas with intervals on the right."""
    from matplotlib.figure import Figure

    rows = image_rows(pairs)
    # Agg with a fixed size and resolution and no date: the same inputs give the same bytes.
    figure = Figure(figsize=(12.8, 4.9), dpi=150, facecolor="white")
    if rows:
        left, right = figure.subfigures(1, 2, width_ratios=(1.28, 1), wspace=0.0)
        _draw_images(left, rows)
    else:
        right = figure
    _draw_deltas(right, deltas, confidence)
    figure.savefig(path, metadata={"Software": None})


def image_rows(pairs: Mapping[str, Pair]) -> Rows:
    """The first images of the reconstruction benchmark, else the first prompt of every drawing category."""
    for pair in pairs.values():
        shown = [row for row in pair.base.samples if row.get("original")][:COLUMNS]
        if shown:
            ids = [str(row["prompt_id"]) for row in shown]
            originals = [pair.base.folder / row["original"] for row in shown]
            return [("input", originals), ("base", _first(pair, "base", ids)), ("aligned", _first(pair, "aligned", ids))]
    for pair in pairs.values():
        if any("file" in row for row in pair.base.samples):
            ids = [ids[0] for ids in pair.categories.values()][:COLUMNS]
            return [("base", _first(pair, "base", ids)), ("aligned", _first(pair, "aligned", ids))]
    return []


def _first(pair: Pair, which: str, ids: Sequence[str]) -> list[Path]:
    measured = pair.base if which == "base" else pair.aligned
    return [measured.folder / next(iter(files_of(measured, prompt_id)), "none") for prompt_id in ids]


def _draw_images(panel: Any, rows: Rows) -> None:
    from PIL import Image

    axes = panel.subplots(len(rows), max(len(paths) for _, paths in rows), squeeze=False)
    panel.subplots_adjust(left=0.115, right=0.985, top=0.93, bottom=0.05, wspace=0.08, hspace=0.08)
    for axis in axes.flat:
        axis.set_axis_off()
    for line, (label, paths) in zip(axes, rows, strict=True):
        place = line[0].get_position()
        panel.text(0.105, (place.y0 + place.y1) / 2, label, ha="right", va="center", fontsize=13, color=INK)
        for axis, path in zip(line, paths, strict=False):
            if not path.is_file():
                continue
            with Image.open(path) as opened:
                image = opened.convert("RGB")
            axis.imshow(image, interpolation="nearest" if max(image.size) <= 64 else "antialiased")


def _draw_deltas(panel: Any, deltas: Mapping[str, Record], confidence: float) -> None:
    axis = panel.subplots()
    panel.subplots_adjust(left=0.34, right=0.965, top=0.86, bottom=0.12)
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
    axis.margins(x=0.16)
    axis.set_title(
        f"aligned − base, points, with {100 * confidence:g} % intervals", loc="right", fontsize=11, color=SOFT, pad=10
    )


def _draw_row(axis: Any, y: float, delta: Record) -> None:
    color = COLORS[direction(delta["low"], delta["high"])]
    axis.plot([100 * delta["low"], 100 * delta["high"]], [y, y], color=color, linewidth=2.6, solid_capstyle="round")
    axis.plot([100 * delta["delta"]], [y], "o", color=color, markersize=7)
    axis.annotate(
        points(delta["delta"]), (100 * delta["delta"], y), (0, 6), textcoords="offset points",
        ha="center", va="bottom", fontsize=9, color=color,
    )  # fmt: skip
