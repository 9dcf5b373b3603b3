"""Curves that survive a kill, and alarms that go off when they should."""

import math
from pathlib import Path

import pytest

from reca.training.metrics import CurveFile, copy_alarm, read_curve
from reca.training.step import Diverged, SpikeGuard

COLUMNS = ("step", "loss", "rate")


def curve_with(path: Path, steps: range) -> None:
    curve = CurveFile(path, COLUMNS, last_step=0)
    for step in steps:
        curve.add({"step": step, "loss": 1 / step, "rate": None})
    curve.close()


def test_rows_come_back(tmp_path: Path) -> None:
    curve_with(tmp_path / "a.csv", range(1, 4))
    assert (tmp_path / "a.csv").read_text() == "step,loss,rate\n1,1,\n2,0.5,\n3,0.33333333,\n"


@pytest.mark.parametrize("torn", ["", "4,0.2", "4", "4,0.25,\n5,0.2,\n6,0.1"])
@pytest.mark.parametrize("done", [1, 3])
def test_resume_leaves_neither_gap_nor_duplicate(tmp_path: Path, torn: str, done: int) -> None:
    path = tmp_path / "a.csv"
    curve_with(path, range(1, 4))
    path.write_text(path.read_text() + torn)
    curve = CurveFile(path, COLUMNS, done)
    for step in range(done + 1, 8):
        curve.add({"step": step, "loss": 0.0})
    curve.close()
    assert [row["step"] for row in read_curve(path, COLUMNS)] == [str(step) for step in range(1, 8)]


def test_a_fresh_run_starts_a_fresh_curve(tmp_path: Path) -> None:
    curve_with(tmp_path / "a.csv", range(1, 4))
    curve_with(tmp_path / "a.csv", range(1, 2))
    assert len(read_curve(tmp_path / "a.csv", COLUMNS)) == 1


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.nan), (1.0, math.inf)])
def test_not_finite(loss: float, norm: float) -> None:
    with pytest.raises(Diverged, match="step 7: the loss is"):
        SpikeGuard().check(7, loss, norm)


def test_spike() -> None:
    guard = SpikeGuard([1.0] * 30)
    guard.check(31, 9.9, 1.0)
    with pytest.raises(Diverged, match=r"step 32.*median of the last 31 steps"):
        guard.check(32, 10.1, 1.0)


def test_no_spike_before_the_median_means_anything() -> None:
    guard = SpikeGuard([1.0] * 10)
    guard.check(11, 1000.0, 1.0)


def held_out(reconstruction: float | None, text_to_image: float | None) -> dict[str, float | None]:
    return {"step": 0, "reconstruction_loss": reconstruction, "text_to_image_loss": text_to_image}


def test_copy_alarm() -> None:
    warning = copy_alarm([held_out(5.0, 4.0), held_out(2.0, 4.0), held_out(0.5, 4.5)])
    assert warning is not None
    assert "copy alarm" in warning
    assert "from 5 to 0.5" in warning


@pytest.mark.parametrize(
    "last",
    [held_out(0.5, 3.9), held_out(4.0, 5.0), held_out(0.5, None), held_out(None, 5.0)],
    ids=["text-to-image falls too", "reconstruction hardly moves", "no captions", "nothing held out"],
)
def test_no_copy_alarm(last: dict[str, float | None]) -> None:
    assert copy_alarm([held_out(5.0, 4.0), last]) is None
    assert copy_alarm([held_out(5.0, 4.0)]) is None
    assert copy_alarm([]) is None
