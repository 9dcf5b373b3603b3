"""The display of a flow: a live table on a terminal, plain lines in a log, and a summary at the end.

It does not import Prefect, which reads its settings at import: `reca run` creates the display before it sets them.
"""

import json
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from reca.runtime.progress import format_duration

SECONDS_BETWEEN_LINES = 15.0
MARKS = {"done": "✓", "unchanged": "·", "restored": "↺", "failed": "✗", "stopped": "✗"}
COLOURS = {"done": "green", "unchanged": "dim", "restored": "green", "failed": "red", "stopped": "yellow"}
TITLES = {"scenes": "GenEval on rendered scenes", "understanding": "understanding", "fidelity": "reconstruction"}
HEADINGS = ("base", "aligned", "points", "interval")
DETAILED = "scenes"
"""The benchmark whose categories have their own rows."""


@dataclass
class _Row:
    began: float
    outcome: str = ""
    seconds: float = 0.0
    done: int = 0
    total: int = 0
    text: str = ""
    last_line: float = 0.0


class Display:
    """Stages, their progress, and the time left.

    Args:
        quiet: Print no line: a run on a worker has Prefect's pages.
        expected: Durations (s) of the stages in an earlier run, to estimate the time left.
    """

    current: ClassVar["Display"]
    """The display of this process's flow: a quiet one, unless `reca run` sets another."""

    def __init__(self, quiet: bool = False, expected: dict[str, float] | None = None) -> None:
        self.console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
        self.rows: dict[str, _Row] = {}
        self.waiting: list[str] = []
        self._expected = expected or {}
        self._quiet = quiet
        self._began = time.monotonic()
        self._lock = threading.Lock()
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if not self._quiet and self.console.is_terminal:
            self._live = Live(get_renderable=self._render, console=self.console, refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()
            self._live = None

    def log(self, text: str) -> None:
        """Print a line that stays."""
        if not self._quiet:
            self.console.print(Text(text))

    def plan(self, stages: list[str]) -> None:
        """Set the stages of this run."""
        self.waiting = list(stages)

    def started(self, stage: str) -> None:
        """Record that a stage starts (again)."""
        with self._lock:
            self.rows[stage] = _Row(time.monotonic(), last_line=time.monotonic())
        if not self._live:
            self.log(f"{stage}: started")

    def progress(self, stage: str, done: int, total: int, unit: str, text: str) -> None:
        """Record the progress of a stage; ``text`` holds its own times."""
        row, now = self.rows[stage], time.monotonic()
        row.done, row.total, row.text = done, total, f"{done}/{total} {unit}  {text}"
        if not self._live and now - row.last_line >= SECONDS_BETWEEN_LINES:
            row.last_line = now
            self.log(f"{stage}: {row.text}{self._time_left()}")

    def ended(self, stage: str, outcome: str) -> None:
        """Record that a stage has ended: done, unchanged, restored, failed or stopped."""
        with self._lock:
            row = self.rows.setdefault(stage, _Row(time.monotonic()))
            row.outcome, row.seconds = outcome, time.monotonic() - row.began
            if stage in self.waiting:
                self.waiting.remove(stage)
        if not self._live and outcome != "unchanged":
            self.log(f"{stage}: {outcome} after {format_duration(row.seconds)}")

    def seconds(self) -> dict[str, float]:
        """Return the duration (s) of every stage that ran, to estimate the next run."""
        worked = {name: round(row.seconds, 1) for name, row in self.rows.items() if row.outcome == "done"}
        return {**self._expected, **worked}

    def _render(self) -> RenderableType:
        with self._lock:
            rows = dict(self.rows)
        table = Table.grid(padding=(0, 1))
        for name, row in rows.items():
            if row.outcome == "unchanged":
                continue
            elapsed = row.seconds if row.outcome else time.monotonic() - row.began
            table.add_row(
                _mark(row),
                Text(name),
                _bar(row),
                Text(format_duration(elapsed), "dim"),
                Text(row.text, overflow="ellipsis", no_wrap=True),
            )
        unchanged = sum(row.outcome == "unchanged" for row in rows.values())
        foot = f"{format_duration(time.monotonic() - self._began)} elapsed{self._time_left()}"
        if unchanged:
            foot += f", {unchanged} stages unchanged"
        if self.waiting:
            foot += f", still to come: {', '.join(name for name in self.waiting if name not in rows) or 'nothing'}"
        return Group(table, Text(foot, "dim", overflow="ellipsis", no_wrap=True))

    def _time_left(self) -> str:
        """Return the time left by the durations of an earlier run; empty if a stage has no duration."""
        if not all(name in self._expected for name in self.waiting):
            return ""
        remaining = sum(self._expected[name] for name in self.waiting)
        running = [row for row in self.rows.values() if not row.outcome]
        remaining -= sum(time.monotonic() - row.began for row in running)
        return f", about {format_duration(max(remaining, 0))} left in all"


Display.current = Display(quiet=True)


def _mark(row: _Row) -> RenderableType:
    if row.outcome:
        return Text(MARKS.get(row.outcome, "·"), COLOURS.get(row.outcome, ""))
    return Spinner("dots", style="cyan")


def _bar(row: _Row) -> RenderableType:
    if row.outcome or not row.total:
        return Text(row.outcome, COLOURS.get(row.outcome, ""))
    return ProgressBar(row.total, row.done, width=24)


@dataclass(frozen=True)
class SummaryRow:
    """One score of base and aligned, in percent, and their difference in points."""

    name: str
    cells: tuple[str, ...]
    """Base, aligned, difference and its interval, formatted."""
    colour: str
    """Green or red if the interval excludes 0."""


@dataclass(frozen=True)
class Summary:
    """The outcome of a run, from ``outputs/report`` and the record of ``reca register``."""

    rows: list[SummaryRow]
    passed: bool
    reasons: list[str]
    confidence: int
    """Coverage of the intervals, in percent."""
    registered: dict[str, Any]
    """The record of ``reca register``; empty if no model was registered."""
    report: Path


def summarise(root: Path, state: Path, confidence: float) -> Summary | None:
    """Read the outcome of a run; ``None`` if there is no report."""
    report = root / "outputs/report"
    deltas, verdict = _read(report / "deltas.json"), _read(report / "verdict.json")
    if not deltas or not verdict:
        return None
    rows: list[SummaryRow] = []
    for benchmark, scores in deltas.items():
        title = TITLES.get(benchmark, benchmark)
        if benchmark == DETAILED:
            rows += [_row(name.replace("_", " "), score) for name, score in scores["categories"].items()]
            title += ", overall"
        rows.append(_row(title, scores["overall"]))
    registered = _read(state / "register.json")
    rules = registered.get("rules") or verdict["rules"]  # those of the registry include the champion
    reasons = [_sentence(rule) for rule in rules]
    passed = registered.get("verdict", "passed" if verdict["passed"] else "refused") == "passed"
    return Summary(rows, passed, reasons, round(100 * confidence), registered, report / "index.html")


def print_summary(summary: Summary, console: Console) -> None:
    """Print the score table, the verdict, the version, and the commands that show more."""
    table = Table(title=f"base → aligned, in percent; intervals cover {summary.confidence} %", title_justify="left")
    table.add_column("score")
    for heading in HEADINGS:
        table.add_column(heading, justify="right")
    for row in summary.rows:
        overall = row.name.endswith("overall")
        style = f"{row.colour}{' bold' if overall else ''}".strip()
        table.add_row(row.name, *row.cells, style=style, end_section=overall)
    verdict = Text(
        "verdict: passed" if summary.passed else "verdict: refused", "bold green" if summary.passed else "bold red"
    )
    lines = [verdict, *(Text(f"  {reason}") for reason in summary.reasons)]
    lines += [Text(line) for line in _registration(summary.registered)]
    pages = Table.grid(padding=(0, 2))
    pages.add_row("report", f"python -m webbrowser -t {summary.report.as_uri()}")
    pages.add_row("MLflow", "reca ui    runs, metrics, registered models")
    pages.add_row("Prefect", "reca ui    this run's stages, logs and artifacts")
    console.print(Group(table, *lines, Text("where to look", "bold"), pages), soft_wrap=True)


def markdown_verdict(summary: Summary) -> str:
    """Return the verdict as Markdown, for Prefect's pages."""
    lines = [f"**{'Passed' if summary.passed else 'Refused'}**", "", *(f"- {reason}" for reason in summary.reasons), ""]
    return "\n".join([*lines, *_registration(summary.registered)])


def _registration(registered: dict[str, Any]) -> list[str]:
    if not registered:
        return ["no model was registered"]
    note = "" if registered.get("new", True) else " (this model was registered before)"
    champion = registered.get("champion") or "none"
    return [
        f"registered: {registered['name']} version {registered['version']}, alias {registered['alias']}{note}; "
        f"champion: {champion}",
        f"its lineage: reca lineage {registered['name']}/{registered['version']}",
    ]


def _row(name: str, score: dict[str, float]) -> SummaryRow:
    base, aligned, delta, low, high = (100 * score[key] for key in ("base", "aligned", "delta", "low", "high"))
    colour = "green" if low > 0 else "red" if high < 0 else ""
    return SummaryRow(name, (f"{base:.1f}", f"{aligned:.1f}", f"{delta:+.1f}", f"[{low:+.1f}, {high:+.1f}]"), colour)


def _sentence(rule: dict[str, Any]) -> str:
    sign = "skipped" if rule.get("skipped") else "passed" if rule["passed"] else "failed"
    return f"{sign}: {rule['text']}" + (f" ({rule['reason']})" if rule.get("reason") else "")


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
