"""What came out of a run, in one table: read from ``outputs/report`` and what ``reca register`` left behind."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

TITLES = {"scenes": "GenEval on rendered scenes", "understanding": "understanding", "fidelity": "reconstruction"}
DETAILED = "scenes"
"""The benchmark whose categories are shown one by one."""


@dataclass(frozen=True)
class Row:
    """One score, base against aligned, in percent and points."""

    name: str
    base: float
    aligned: float
    delta: float
    low: float
    high: float

    def cells(self) -> tuple[str, ...]:
        """As they are shown: base, aligned, delta, interval."""
        interval = f"[{self.low:+.1f}, {self.high:+.1f}]"
        return f"{self.base:.1f}", f"{self.aligned:.1f}", f"{self.delta:+.1f}", interval


@dataclass(frozen=True)
class Summary:
    """The outcome of a run."""

    rows: list[Row]
    passed: bool
    reasons: list[str]
    confidence: int
    """Coverage of the intervals, in percent."""
    registered: dict[str, Any]
    """What ``reca register`` says; empty if nothing was registered."""
    report: Path


def summarise(root: Path, state: Path, confidence: float) -> Summary | None:
    """Read the outcome; ``None`` while there is no report."""
    report = root / "outputs/report"
    deltas, verdict = _read(report / "deltas.json"), _read(report / "verdict.json")
    if not deltas or not verdict:
        return None
    rows: list[Row] = []
    for benchmark, scores in deltas.items():
        title = TITLES.get(benchmark, benchmark)
        if benchmark == DETAILED:
            rows += [_row(name.replace("_", " "), score) for name, score in scores["categories"].items()]
            title += ", overall"
        rows.append(_row(title, scores["overall"]))
    registered = _read(state / "register.json")
    rules = registered.get("rules") or verdict["rules"]  # the registry's know the champion
    reasons = [_sentence(rule) for rule in rules]
    passed = registered.get("verdict", "passed" if verdict["passed"] else "refused") == "passed"
    return Summary(rows, passed, reasons, round(100 * confidence), registered, report / "index.html")


def print_summary(summary: Summary, console: Console, ui: str = "reca ui") -> None:
    """The table, the verdict, the version, and where to look."""
    table = Table(title=f"base → aligned, in percent; intervals cover {summary.confidence} %", title_justify="left")
    table.add_column("score")
    for heading in ("base", "aligned", "points", "interval"):
        table.add_column(heading, justify="right")
    for row in summary.rows:
        clear = "green" if row.low > 0 else "red" if row.high < 0 else ""
        overall = row.name.endswith("overall")
        table.add_row(row.name, *row.cells(), style=f"{clear}{' bold' if overall else ''}".strip(), end_section=overall)
    said = Text(
        "verdict: passed" if summary.passed else "verdict: refused", "bold green" if summary.passed else "bold red"
    )
    lines = [said, *(Text(f"  {reason}") for reason in summary.reasons)]
    lines += [Text(line) for line in _registration(summary.registered)]
    places = Table.grid(padding=(0, 2))
    places.add_row("report", f"python -m webbrowser -t {summary.report.as_uri()}")
    places.add_row("MLflow", f"{ui}    runs, metrics, registered models")
    places.add_row("Prefect", f"{ui}    this run's stages, logs and artifacts")
    console.print(Group(table, *lines, Text("where to look", "bold"), places), soft_wrap=True)


def markdown_verdict(summary: Summary) -> str:
    """The verdict for Prefect's pages."""
    lines = [f"**{'Passed' if summary.passed else 'Refused'}**", "", *(f"- {reason}" for reason in summary.reasons), ""]
    return "\n".join([*lines, *_registration(summary.registered)])


def _registration(registered: dict[str, Any]) -> list[str]:
    if not registered:
        return ["nothing was registered"]
    known = "" if registered.get("new", True) else " (this very model was registered before)"
    champion = registered.get("champion") or "none"
    return [
        f"registered: {registered['name']} version {registered['version']}, alias {registered['alias']}{known}; "
        f"champion: {champion}",
        f"where it came from: reca lineage {registered['name']}/{registered['version']}",
    ]


def _row(name: str, score: dict[str, float]) -> Row:
    return Row(name, *(100 * score[key] for key in ("base", "aligned", "delta", "low", "high")))


def _sentence(rule: dict[str, Any]) -> str:
    sign = "skipped" if rule.get("skipped") else "passed" if rule["passed"] else "failed"
    return f"{sign}: {rule['text']}" + (f" ({rule['reason']})" if rule.get("reason") else "")


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
