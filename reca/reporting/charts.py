"""The drawings of the page, as inline SVG without a fixed width: they are read on a phone as on a desk.

Colours come from the page's style sheet by class, so dark and light mode need no second drawing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from reca.reporting.scales import PERCENT, Scale, nice_scale
from reca.reporting.svg import drawing, percent, tag

ROW = 34  # height of a row of the forest chart, in pixels
MIDDLE = ROW / 2
AXIS = 22  # height of the row of tick labels


@dataclass(frozen=True)
class Series:
    """A line of a curve chart."""

    name: str
    style: str
    """Class in the style sheet: ``train`` or ``held-out``."""
    points: tuple[tuple[float, float], ...]
    """(x, y), x ascending; a y that is not finite breaks the line."""


def direction(low: float, high: float) -> str:
    """What an interval of a delta says: ``up`` or ``down`` when it excludes zero, else ``unclear``."""
    return "up" if low > 0 else "down" if high < 0 else "unclear"


def dumbbell(label: str, base: float, aligned: float) -> Markup:
    """Base (ring) and aligned (dot, which fits into the ring) on the axis 0 to 100 %, joined by a line."""
    return _row(
        f"{label}: base {100 * base:.1f} %, aligned {100 * aligned:.1f} %",
        PERCENT,
        _line(base, aligned, class_="join " + ("gain" if aligned >= base else "loss")),
        tag("circle", cx=percent(base), cy=MIDDLE, r=6.5, class_="base"),
        tag("circle", cx=percent(aligned), cy=MIDDLE, r=4.5, class_="aligned"),
    )


def delta_scale(bounds: Sequence[float]) -> Scale:
    """One axis for all deltas of a chart; zero is always on it, and it is at least a point long."""
    ends = [0.0, *bounds]
    return nice_scale(ends if max(ends) - min(ends) > 0.01 else [-0.01, 0.01])


def interval(label: str, delta: float, low: float, high: float, scale: Scale) -> Markup:
    """One delta with its interval, against a line at zero."""
    title = f"{label}: {100 * delta:+.1f} points, interval {100 * low:+.1f} to {100 * high:+.1f}"
    zero = percent(scale(0))
    kind = direction(low, high)
    whisker = _line(scale(low), scale(high), class_=f"whisker {kind}")
    ends = [
        tag("line", x1=percent(scale(end)), x2=percent(scale(end)), y1=MIDDLE - 5, y2=MIDDLE + 5, class_=f"end {kind}")
        for end in (low, high)
    ]
    return _row(
        title,
        scale,
        tag("line", x1=zero, x2=zero, y1=0, y2=ROW, class_="zero"),
        whisker,
        *ends,
        tag("circle", cx=percent(scale(delta)), cy=MIDDLE, r=5.5, class_=f"estimate {kind}"),
    )


def axis(scale: Scale, signed: bool = False) -> Markup:
    """The tick labels above a column of rows, in per cent or points."""
    form = "{:+.0f}" if signed else "{:.0f}"
    if any(abs(100 * tick - round(100 * tick)) > 1e-6 for tick in scale.ticks):
        form = form.replace(".0f", ".1f")
    labels = [
        tag(
            "text",
            "0" if tick == 0 else form.format(100 * tick).replace("-", "−"),
            x=percent(scale(tick)),
            y=14,
            text_anchor="middle",
        )
        for tick in scale.ticks
    ]
    return tag("svg", *labels, class_="axis", height=AXIS, width="100%", aria_hidden="true")


def _row(title: str, scale: Scale, *marks: Markup) -> Markup:
    grid = [tag("line", x1=percent(scale(t)), x2=percent(scale(t)), y1=0, y2=ROW, class_="grid") for t in scale.ticks]
    return drawing(title, "", *grid, *marks, class_="row", height=ROW, width="100%")


def _line(first: float, second: float, **attributes: str) -> Markup:
    return tag("line", x1=percent(first), x2=percent(second), y1=MIDDLE, y2=MIDDLE, **attributes)


# A curve chart: its own coordinates, scaled to the card that holds it (about one to one on a phone).
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 340, 190, 44, 10, 10, 26


def curves(title: str, series: Sequence[Series]) -> Markup:
    """Lines over optimizer steps; empty series are left out. At least one must hold a finite point."""
    shown = [line for line in series if any(math.isfinite(y) for _, y in line.points)]
    x_scale = nice_scale([x for line in shown for x, _ in line.points])
    y_scale = nice_scale(_without_outliers([y for line in shown for _, y in line.points]))
    body = [*_frame(x_scale, y_scale), *(_path(line, x_scale, y_scale) for line in shown)]
    return drawing(title, _told(shown), *body, viewBox=f"0 0 {WIDTH} {HEIGHT}", class_="curves")


def _without_outliers(values: Sequence[float]) -> list[float]:
    """The values without the worst two in a hundred at the top: the first steps must not flatten all others."""
    finite = sorted(value for value in values if math.isfinite(value))
    return finite[: max(1, math.ceil(len(finite) * 0.98))]


def _place(x: float, y: float, x_scale: Scale, y_scale: Scale) -> tuple[float, float]:
    return LEFT + x_scale(x) * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - y_scale(y) * (HEIGHT - TOP - BOTTOM)


def _frame(x_scale: Scale, y_scale: Scale) -> list[Markup]:
    parts = []
    for tick in y_scale.ticks:
        _, y = _place(x_scale.low, tick, x_scale, y_scale)
        parts.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="grid"))
        parts.append(tag("text", f"{tick:.4g}", x=LEFT - 6, y=y + 4, text_anchor="end"))
    for tick in x_scale.ticks:
        x, _ = _place(tick, y_scale.low, x_scale, y_scale)
        parts.append(tag("text", f"{tick:.6g}", x=x, y=HEIGHT - 8, text_anchor="middle"))
    return parts


def _path(line: Series, x_scale: Scale, y_scale: Scale) -> Markup:
    commands, drawn = [], False
    for x, y in thinned(line.points):
        if not math.isfinite(y):
            drawn = False
            continue
        place = _place(x, y, x_scale, y_scale)
        commands.append(f"{'L' if drawn else 'M'}{place[0]:.1f} {place[1]:.1f}")
        drawn = True
    marks = [tag("path", d=" ".join(commands), class_=f"line {line.style}")]
    if len(line.points) <= 12:  # few points: show each
        for x, y in line.points:
            if math.isfinite(y):
                place = _place(x, y, x_scale, y_scale)
                marks.append(tag("circle", cx=place[0], cy=place[1], r=3, class_=f"point {line.style}"))
    return tag("g", *marks)


def thinned(points: Sequence[tuple[float, float]], most: int = 240) -> list[tuple[float, float]]:
    """At most ``most`` points: means over equal runs, so that a long curve stays small and keeps its level."""
    if len(points) <= most:
        return list(points)
    edges = [round(number * len(points) / most) for number in range(most + 1)]
    runs = [points[first:last] for first, last in pairwise(edges)]
    return [(sum(x for x, _ in run) / len(run), sum(y for _, y in run) / len(run)) for run in runs]


def _told(series: Sequence[Series]) -> str:
    parts = []
    for line in series:
        finite = [(x, y) for x, y in line.points if math.isfinite(y)]
        (first_x, first_y), (last_x, last_y) = finite[0], finite[-1]
        parts.append(f"{line.name}: {first_y:.4g} at step {first_x:.6g}, {last_y:.4g} at step {last_x:.6g}")
    return "; ".join(parts)
