"""The bench of families runs, and its answer has the shape that the README promises; its numbers are not looked at."""

import json
from importlib import import_module
from pathlib import Path

import pytest
import torch

from tests.parity.comparison import options_of

families, models, sizes = (import_module(f"bench.{name}") for name in ("families", "models", "sizes"))


@pytest.mark.parametrize("family", sizes.FAMILIES)
def test_models_are_built_with_every_option_that_the_configuration_knows(family: str) -> None:
    unfolded_or_of_no_use = {"name", "family", "checkpoint", "hub", "options"}
    assert options_of(family).keys() - unfolded_or_of_no_use <= sizes.OPTIONS.keys()


def test_random_models_let_gradients_through() -> None:
    torch.manual_seed(0)
    model = models.build("harmon", "tiny", torch.device("cpu"))
    assert all(bool(parameter.any()) for name, parameter in model.named_parameters() if name.endswith("weight"))


def test_a_quick_run_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    families.main(["--quick", "--families", "openuni", "--output", str(tmp_path / "answer.json")])
    answer = json.loads((tmp_path / "answer.json").read_text())
    row = answer["families"]["openuni"]["tiny"]
    assert row["cached_over_live"] > 0
    assert row["batched_over_single"] > 0
    assert row["median_seconds"].keys() == {"cached", "live", "batched", "single"}
    assert (answer["repeats"], answer["batch_size"]) == (1, 2)
    assert "cached/live" in capsys.readouterr().out
