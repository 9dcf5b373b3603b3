"""``reca gate``: draws until the decision is settled, never twice, and tells what it saved."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from reca.cli import main
from reca.config import ROOT, compose
from reca.evaluation.benchmark import read_items
from reca.evaluation.samples import read_manifest
from reca.stages.generate import generate
from reca.stages.score import score
from tools.tiny_bases.janus_tiny import build

SMALL = (
    "evaluate.benchmarks=[scenes]",
    "evaluate.scenes.prompts_per_category=30",
    "evaluate.scenes.images_per_prompt=2",
    "hardware.generate_batch_size=16",
)
ALL = 2 * 6 * 30 * 2
RESULT = Path("outputs/evaluations/gate-scenes.json")


@pytest.fixture
def here(project, monkeypatch) -> Path:
    """The project as the working folder, with weights of both models."""
    (project / "dvc.yaml").write_text("stages: {}\n")
    monkeypatch.chdir(project)
    return project


def by_weights(base_kind, aligned_kind) -> type:
    """A family whose skill lies in the weights."""

    class ByWeights(base_kind):
        @classmethod
        def load(cls, checkpoint, options, device):
            return (aligned_kind if "model" in checkpoint.parts[-1] else base_kind)().to(device)

    return ByWeights


def gate(*options: str) -> dict:
    assert main(["gate", *options, *SMALL]) == 0
    return json.loads(RESULT.read_text())


def test_a_clear_gain_is_settled_early_and_the_rest_is_drawn_later(here, use_model, perfect, noise, capsys):
    use_model(by_weights(noise, perfect))
    found = gate()
    assert (found["decision"], found["early"], found["error_rate"]) == ("reached", True, 0.05)
    assert found["images"] == ALL
    assert found["images_found"] == 0
    assert found["images_drawn"] + found["images_saved"] == ALL
    assert found["images_saved"] > ALL / 2
    printed = capsys.readouterr().out
    assert f"{found['images_saved']} of {ALL} saved" in printed
    assert "aligned - base is at least +0.00 points (all prompts would say otherwise with at most 5.0%)" in printed
    config = compose(SMALL)
    perfect.drawn_prompts.clear()
    generate(config, here, "aligned", "scenes")
    assert len(perfect.drawn_prompts) == ALL / 2 - found["images_drawn"] / 2, "what the gate drew is not drawn again"
    assert len(read_manifest(here / "outputs/samples/aligned/scenes")) == ALL / 2


def test_a_clear_loss_is_settled_early_too(here, use_model, perfect, noise):
    use_model(by_weights(perfect, noise))
    found = gate("--minimum", "-0.1")
    assert (found["decision"], found["early"]) == ("missed", True)
    assert found["images_saved"] > 0


def test_nothing_is_drawn_twice(here, use_model, perfect, noise):
    use_model(by_weights(noise, perfect))
    generate(compose(SMALL), here, "base", "scenes")
    first = gate()
    assert first["images_found"] == first["images_drawn"] > 0, "the base's samples were complete"
    again = gate()
    assert (again["images_drawn"], again["images_found"]) == (0, 2 * first["images_drawn"])
    assert again["measured"] == first["measured"]


def test_samples_of_other_weights_are_not_taken(here, use_model, perfect, noise):
    use_model(by_weights(noise, perfect))
    generate(compose(SMALL), here, "base", "scenes")
    (here / compose(SMALL).model.checkpoint / "model.safetensors").write_bytes(b"other")
    assert gate()["images_found"] == 0


def test_where_both_are_alike_all_prompts_decide_and_the_decision_is_exact(here, use_model, perfect):
    use_model(perfect)
    config = compose(SMALL)
    for variant in ("base", "aligned"):
        generate(config, here, variant, "scenes")
        score(config, here, variant, "scenes")
    base, aligned = (
        read_items(here / f"outputs/scores/{variant}/scenes.items.jsonl") for variant in ("base", "aligned")
    )
    assert [item.values for item in base] == [item.values for item in aligned]
    found = gate("--error-rate", "1e-12")
    assert (found["decision"], found["early"]) == ("reached", False), "a difference of exactly 0 reaches 0"
    assert (found["images_saved"], found["images_found"], found["error_rate"]) == (0, ALL, 0.0)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--error-rate", "0"], "--error-rate lies between 0 and 1"),
        (["--minimum", "2"], "--minimum between -1 and 1 (0.02 is two points)"),
        (["--aligned", "nowhere"], "nowhere is no folder: --aligned names"),
    ],
)
def test_bad_options_are_told(here, use_model, options, told, capsys):
    assert main(["gate", *options, *SMALL]) == 2
    assert told in capsys.readouterr().err


def test_the_real_tiny_model_against_random_weights(here, capsys):
    """The shipped base as base; a model that was never trained draws nothing that the detector knows."""
    config = compose()
    shutil.rmtree(here / config.model.checkpoint)
    shutil.copytree(ROOT / config.model.checkpoint, here / config.model.checkpoint)
    torch.manual_seed(0)
    build().save_official(here / "untrained")
    assert main(["gate", "--aligned", "untrained", *SMALL, "evaluate.scenes.images_per_prompt=1"]) == 0
    found = json.loads(RESULT.read_text())
    assert (found["decision"], found["early"]) == ("missed", True)
    assert 0 < found["images_saved"] < ALL / 2
