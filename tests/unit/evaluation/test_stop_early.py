"""``reca evaluate --stop-early``: generates until the decision is settled, reuses samples, counts the saved ones."""

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
    "evaluate.scenes.prompts_per_category=30",
    "evaluate.scenes.images_per_prompt=2",
    "hardware.generate_batch_size=16",
)
ALL = 2 * 6 * 30 * 2
RESULT = Path("outputs/evaluations/early-stopping-scenes.json")


@pytest.fixture
def here(project, monkeypatch) -> Path:
    """The project as the working folder, with weights of both models."""
    (project / "dvc.yaml").write_text("stages: {}\n")
    monkeypatch.chdir(project)
    return project


def by_weights(base_kind, aligned_kind) -> type:
    """Return a family whose skill depends on the folder of the weights."""

    class ByWeights(base_kind):
        @classmethod
        def load(cls, checkpoint, options, device):
            return (aligned_kind if "model" in checkpoint.parts[-1] else base_kind)().to(device)

    return ByWeights


def stop_early(*options: str) -> dict:
    assert main(["evaluate", "--stop-early", *options, *SMALL]) == 0
    return json.loads(RESULT.read_text())


def test_clear_gain_is_settled_early_and_the_rest_is_generated_later(here, use_model, perfect, noise, capsys):
    use_model(by_weights(noise, perfect))
    record = stop_early()
    assert (record["decision"], record["early"], record["error_rate"]) == ("reached", True, 0.05)
    assert record["images"] == ALL
    assert record["images_reused"] == 0
    assert record["images_generated"] + record["images_saved"] == ALL
    assert record["images_saved"] > ALL / 2
    printed = capsys.readouterr().out
    assert f"{record['images_saved']} of {ALL} saved" in printed
    assert "aligned - base is at least +0.00 points (all prompts would say otherwise with at most 5.0%)" in printed
    config = compose(SMALL)
    perfect.drawn_prompts.clear()
    generate(config, here, "aligned", "scenes")
    assert len(perfect.drawn_prompts) == ALL / 2 - record["images_generated"] / 2, (
        "finished batches are not generated again"
    )
    assert len(read_manifest(here / "outputs/samples/aligned/scenes")) == ALL / 2


def test_clear_loss_is_settled_early(here, use_model, perfect, noise):
    use_model(by_weights(perfect, noise))
    record = stop_early("--minimum", "-0.1")
    assert (record["decision"], record["early"]) == ("missed", True)
    assert record["images_saved"] > 0


def test_existing_samples_are_reused(here, use_model, perfect, noise):
    use_model(by_weights(noise, perfect))
    generate(compose(SMALL), here, "base", "scenes")
    first = stop_early()
    assert first["images_reused"] == first["images_generated"] > 0, "the base's samples were complete"
    second = stop_early()
    assert (second["images_generated"], second["images_reused"]) == (0, 2 * first["images_generated"])
    assert second["num_measured"] == first["num_measured"]


def test_samples_of_other_weights_are_not_reused(here, use_model, perfect, noise):
    use_model(by_weights(noise, perfect))
    generate(compose(SMALL), here, "base", "scenes")
    (here / compose(SMALL).model.checkpoint / "model.safetensors").write_bytes(b"other")
    assert stop_early()["images_reused"] == 0


def test_equal_models_are_decided_exactly_by_all_prompts(here, use_model, perfect):
    use_model(perfect)
    config = compose(SMALL)
    for variant in ("base", "aligned"):
        generate(config, here, variant, "scenes")
        score(config, here, variant, "scenes")
    base, aligned = (
        read_items(here / f"outputs/scores/{variant}/scenes.items.jsonl") for variant in ("base", "aligned")
    )
    assert [item.values for item in base] == [item.values for item in aligned]
    record = stop_early("--error-rate", "1e-12")
    assert (record["decision"], record["early"]) == ("reached", False), "a difference of exactly 0 reaches 0"
    assert (record["images_saved"], record["images_reused"], record["error_rate"]) == (0, ALL, 0.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--error-rate", "0"], "--error-rate must be between 0 and 1"),
        (["--minimum", "2"], "--minimum between -1 and 1 (0.02 is two points)"),
        (["benchmarks=[understanding]"], "compares two checkpoints on scenes or geneval"),
        (["--aligned", "nowhere"], "nowhere is not a folder: --aligned names"),
    ],
)
def test_bad_options_are_refused(here, use_model, options, message, capsys):
    assert main(["evaluate", "--stop-early", *options, *SMALL]) == 2
    assert message in capsys.readouterr().err


def test_shipped_base_scores_higher_than_random_weights(here, capsys):
    """The detector recognises no image of a model with random weights."""
    config = compose()
    shutil.rmtree(here / config.model.checkpoint)
    shutil.copytree(ROOT / config.model.checkpoint, here / config.model.checkpoint)
    torch.manual_seed(0)
    build().save_official(here / "untrained")
    words = ["--aligned", "untrained", *SMALL, "evaluate.scenes.images_per_prompt=1"]
    assert main(["evaluate", "--stop-early", *words]) == 0
    record = json.loads(RESULT.read_text())
    assert (record["decision"], record["early"]) == ("missed", True)
    assert 0 < record["images_saved"] < ALL / 2
