"""Progress lines: rate-limited, always the last one, with correct times."""

import re

import pytest

from reca.runtime import progress
from reca.runtime.progress import Progress, format_duration

LINE = re.compile(r"PROGRESS (\d+)/(\d+) (\w+) (.*)")


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the clock of the progress display; set its only element."""
    time = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: time[0])
    return time


def test_progress_prints_few_lines_and_the_last_one_once(now: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    progress_lines = Progress(1000, "images")
    for done in range(1, 1001):
        now[0] += 0.01
        progress_lines.update(done, f"{done} good")
    progress_lines.update(1000)
    lines = [LINE.fullmatch(line) for line in capsys.readouterr().out.splitlines()]
    assert [int(line[1]) for line in lines if line] == [1, 201, 401, 601, 801, 1000]
    assert [line.groups()[1:3] for line in lines if line] == [("1000", "images")] * 6
    assert lines[-1] is not None
    assert lines[-1][4] == "0:10 elapsed, 1000 good"


def test_time_left_ignores_units_of_an_earlier_process(now: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    progress_lines = Progress(100, "steps", start=50)
    progress_lines.update(50)
    now[0] += 30
    progress_lines.update(75)
    first, second = capsys.readouterr().out.splitlines()
    assert first == "PROGRESS 50/100 steps 0:00 elapsed"
    assert second == "PROGRESS 75/100 steps 0:30 elapsed, 0:30 left"


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (59.7, "1:00"), (75, "1:15"), (3675, "1:01:15")])
def test_format_duration(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
