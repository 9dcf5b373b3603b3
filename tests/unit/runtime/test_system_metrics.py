"""Sampling of system metrics: an error is reported and does not stop the run."""

from pathlib import Path

import pytest

from reca.runtime import system_metrics


def test_failed_sampling_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> dict[str, str]:
        raise OSError("the GPU does not answer")

    monkeypatch.setattr(system_metrics, "_measure", fail)
    with system_metrics.sample_to_csv(tmp_path / "system.csv", every_seconds=0.01):
        pass
    assert "the GPU does not answer" in caplog.text
