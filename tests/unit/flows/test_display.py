"""The display of a run: stages, progress, time left; and the summary at its end."""

import io
import json

import pytest
from rich.console import Console

from flows.display import Display, markdown_verdict, print_summary, summarise
from flows.run_context import EXIT_STATUS, PROGRESS


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("flows.display.time.monotonic", lambda: now[0])
    return now


def plain(display) -> io.StringIO:
    display.console = Console(file=io.StringIO(), width=200)
    return display.console.file


def test_display_prints_a_line_every_15_seconds_without_a_terminal(clock):
    display = Display(expected={"train": 100.0, "report": 20.0})
    out = plain(display)
    display.plan(["ingest", "train", "report"])
    display.ended("ingest", "unchanged")
    display.started("train")
    for _ in range(40):
        clock[0] += 1
        display.progress("train", int(clock[0]) - 1000, 100, "steps", "0:40 elapsed, 1:00 left")
    clock[0] += 61
    display.ended("train", "done")
    lines = out.getvalue().splitlines()
    assert lines[0] == "train: started"
    assert lines[1] == "train: 15/100 steps  0:40 elapsed, 1:00 left, about 1:45 left in all"
    assert lines[-1] == "train: done after 1:41"
    assert len(lines) == 4, "a line every 15 s is enough"
    assert display.seconds() == {"train": 101.0, "report": 20.0}


def test_time_left_is_unknown_while_a_stage_has_no_duration(clock):
    display = Display(expected={"train": 100.0})
    out = plain(display)
    display.plan(["train", "report"])
    display.started("train")
    clock[0] += 20
    display.progress("train", 1, 100, "steps", "")
    assert "in all" not in out.getvalue()


def test_display_renders_a_table_on_a_terminal(clock):
    display = Display()
    display.plan(["ingest", "extract", "train", "report"])
    display.ended("ingest", "unchanged")
    display.started("extract")
    display.ended("extract", "failed")
    display.started("train")
    display.progress("train", 3, 4, "steps", "0:10 left")
    console = Console(file=io.StringIO(), width=120)
    console.print(display._render())
    output = console.file.getvalue()
    assert "✗ extract failed" in output
    assert "3/4 steps  0:10 left" in output
    assert "1 stages unchanged, still to come: report" in output


def test_quiet_display_prints_no_line(capsys):
    display = Display(quiet=True)
    display.log("x")
    display.started("train")
    display.ended("train", "done")
    assert capsys.readouterr().out == ""


def test_progress_lines_are_parsed():
    match = PROGRESS.fullmatch("PROGRESS 15/600 steps 0:03 elapsed, 2:01 left loss 0.31")
    assert match.groups() == ("15", "600", "steps", "0:03 elapsed, 2:01 left loss 0.31")


def test_progress_lines_of_the_stages_are_parsed(capsys):
    from reca.runtime.progress import Progress

    Progress(4, "images").update(4)
    assert PROGRESS.fullmatch(capsys.readouterr().out.strip()).groups()[:3] == ("4", "4", "images")


def test_exit_status_in_a_dvc_error_is_parsed():
    line = "ERROR: failed to reproduce 'train': failed to run: python -m reca train, exited with 2"
    assert EXIT_STATUS.search(line)[1] == "2"


@pytest.fixture
def project(tmp_path):
    score = {"base": 0.5, "aligned": 0.57, "delta": 0.07, "low": 0.05, "high": 0.09}
    worse = {"base": 0.9, "aligned": 0.88, "delta": -0.02, "low": -0.04, "high": 0.001}
    deltas = {
        "scenes": {"overall": score, "categories": {"position": score, "color_attr": worse}},
        "understanding": {"overall": worse, "categories": {"color": worse}},
        "fidelity": {"overall": score, "categories": {}},
    }
    rule = {"text": "scenes: lower bound > 0", "passed": True, "reason": "+5.0", "skipped": False}
    report = tmp_path / "outputs/report"
    report.mkdir(parents=True)
    (report / "deltas.json").write_text(json.dumps(deltas))
    (report / "verdict.json").write_text(json.dumps({"passed": True, "rules": [rule]}))
    return tmp_path


def test_summary_prints_scores_verdict_version_and_paths(project):
    state = project / ".reca"
    state.mkdir()
    worse_than_champion = {"text": "not worse than the champion", "passed": False, "reason": "-1.0", "skipped": False}
    registered = {
        "name": "reca-janus_tiny",
        "version": "3",
        "alias": "challenger",
        "verdict": "refused",
        "rules": [worse_than_champion],
        "champion": "2",
        "new": True,
    }
    (state / "register.json").write_text(json.dumps(registered))
    summary = summarise(project, state, 0.95)
    console = Console(file=io.StringIO(), width=400)  # a long temporary path must not be broken
    print_summary(summary, console)
    output = console.file.getvalue()
    for words in (
        "position", "color attr", "GenEval on rendered scenes, overall", "understanding", "reconstruction", "95 %",
        "50.0", "57.0", "+7.0", "[+5.0, +9.0]", "verdict: refused", "failed: not worse than the champion (-1.0)",
        "reca-janus_tiny version 3, alias challenger", "champion: 2", "reca ui", "index.html",
    ):  # fmt: skip
        assert words in output, words
    assert "color attr" in output
    assert "| color |" not in output, "only GenEval's categories have their own rows"
    assert "**Refused**" in markdown_verdict(summary)


def test_summary_without_a_report_is_none(tmp_path):
    assert summarise(tmp_path, tmp_path / ".reca", 0.95) is None
