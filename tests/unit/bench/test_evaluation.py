"""A smoke run of bench.evaluation: the result is consistent; its values depend on the machine."""

import json
from importlib import import_module
from pathlib import Path

import pytest

from reca.models.janus.model import Janus

evaluation = import_module("bench.evaluation")


def test_quick_run_writes_a_consistent_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = Janus.generate
    evaluation.main(["--quick", "--output", str(tmp_path / "answer.json")])
    assert Janus.generate is before
    answer = json.loads((tmp_path / "answer.json").read_text())
    assert (answer["repeats"], answer["batch_size"], answer["prompts_per_task"]) == (1, 4, 1)
    for row in answer["ways"].values():
        assert row["images_per_second"] == pytest.approx(12 / row["generate_seconds"], rel=0.01)
        assert 0 < row["model_seconds"] < row["generate_seconds"]
        assert 0 < row["judge_seconds"] < row["score_seconds"]
        total = row["generate_seconds"] + row["score_seconds"]
        inside = (row["model_seconds"] + row["judge_seconds"]) / total
        assert row["outside_the_model"] == pytest.approx(1 - inside, abs=1e-3)
    single, batched = (answer["ways"][way]["images_per_second"] for way in ("single", "batched"))
    assert answer["batched_over_single"] == pytest.approx(batched / single, rel=0.01)
    assert "outside model and judge" in capsys.readouterr().out
