"""Models of bench.families, and the form of its result; values depend on the machine."""

import json
from importlib import import_module
from pathlib import Path

import pytest
import torch

from tests.parity.comparison import options_of

families, models, sizes, steps = (import_module(f"bench.{name}") for name in ("families", "models", "sizes", "steps"))
CPU = torch.device("cpu")


@pytest.mark.parametrize("family", sizes.FAMILIES)
def test_options_cover_the_configuration(family: str) -> None:
    not_options = {"name", "family", "checkpoint", "hub", "options"}
    assert options_of(family).keys() - not_options <= sizes.OPTIONS.keys()


@pytest.mark.parametrize("family", ["bagel", "harmon", "openuni"])
def test_gradients_reach_every_trained_parameter(family: str) -> None:
    """As initialised by its class, Harmon's zero layers would stop the gradients of 215 of 217 parameters."""
    torch.manual_seed(0)
    trainer = steps.Trainer(models.build(family, "tiny", CPU), autocast_bf16=False)
    trainer.step(steps.make_batch(trainer.model, 2, CPU))
    gradients = {name: value.grad for name, value in trainer.model.named_parameters() if value.requires_grad}
    assert gradients
    assert [name for name, gradient in gradients.items() if gradient is None or not bool(gradient.any())] == []


def test_quick_run_writes_a_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    families.main(["--quick", "--families", "openuni", "--output", str(tmp_path / "answer.json")])
    answer = json.loads((tmp_path / "answer.json").read_text())
    row = answer["families"]["openuni"]["tiny"]
    assert row["cached_over_live"] > 0
    assert row["batched_over_single"] > 0
    assert row["median_seconds"].keys() == {"cached", "live", "batched", "single"}
    assert (answer["repeats"], answer["batch_size"]) == (1, 2)
    assert "cached/live" in capsys.readouterr().out
