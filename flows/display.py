"""What a run shows while it works: a live table on a terminal, plain lines in a log."""

import sys
import threading
import time
from dataclasses import dataclass
from typing import ClassVar, Self

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
    """Which stage, how far, how long still.

    Args:
        quiet: Show nothing: a run on a worker has Prefect's pages.
        expected: Seconds that each stage took last time, for the time left of the whole run.
    """

    current: ClassVar["Display"]
    """What the flow of this process shows itself on: nothing, unless `reca run` says otherwise."""

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

    def say(self, text: str) -> None:
        """One line that stays."""
        if not self._quiet:
            self.console.print(Text(text))

    def plan(self, stages: list[str]) -> None:
        """What lies ahead."""
        self.waiting = list(stages)

    def started(self, stage: str) -> None:
        """A stage begins (again)."""
        with self._lock:
            self.rows[stage] = _Row(time.monotonic(), last_line=time.monotonic())
        if not self._live:
            self.say(f"{stage}: started")

    def progress(self, stage: str, done: int, total: int, unit: str, text: str) -> None:
        """A stage has come so far; ``text`` holds its own times."""
        row, now = self.rows[stage], time.monotonic()
        row.done, row.total, row.text = done, total, f"{done}/{total} {unit}  {text}"
        if not self._live and now - row.last_line >= SECONDS_BETWEEN_LINES:
            row.last_line = now
            self.say(f"{stage}: {row.text}{self._whole_run_left()}")

    def ended(self, stage: str, outcome: str) -> None:
        """A stage has ended: done, unchanged, restored, failed or stopped."""
        with self._lock:
            row = self.rows.setdefault(stage, _Row(time.monotonic()))
            row.outcome, row.seconds = outcome, time.monotonic() - row.began
            if stage in self.waiting:
                self.waiting.remove(stage)
        if not self._live and outcome != "unchanged":
            self.say(f"{stage}: {outcome} after {format_duration(row.seconds)}")

    def seconds(self) -> dict[str, float]:
        """How long the stages took that did something, for the next run's estimate."""
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
        foot = f"{format_duration(time.monotonic() - self._began)} elapsed{self._whole_run_left()}"
        if unchanged:
            foot += f", {unchanged} stages unchanged"
        if self.waiting:
            foot += f", still to come: {', '.join(name for name in self.waiting if name not in rows) or 'nothing'}"
        return Group(table, Text(foot, "dim", overflow="ellipsis", no_wrap=True))

    def _whole_run_left(self) -> str:
        """By what each stage took last time; nothing is said while one of them has never run."""
        if not all(name in self._expected for name in self.waiting):
            return ""
        left = sum(self._expected[name] for name in self.waiting)
        running = [row for row in self.rows.values() if not row.outcome]
        left -= sum(time.monotonic() - row.began for row in running)
        return f", about {format_duration(max(left, 0))} left in all"


Display.current = Display(quiet=True)


def _mark(row: _Row) -> RenderableType:
    if row.outcome:
        return Text(MARKS.get(row.outcome, "·"), COLOURS.get(row.outcome, ""))
    return Spinner("dots", style="cyan")


def _bar(row: _Row) -> RenderableType:
    if row.outcome or not row.total:
        return Text(row.outcome, COLOURS.get(row.outcome, ""))
    return ProgressBar(row.total, row.done, width=24)
