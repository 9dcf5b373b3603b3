"""Tiny bases: the short recipe makes every base as float16 with its card, and the command line chooses the recipe."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from reca.config import ROOT
from reca.models.loading import load_model
from tools.tiny_bases import short_recipe
from tools.tiny_bases.__main__ import main
from tools.tiny_bases.base_card import model_card
from tools.tiny_bases.presets import options_of
from tools.tiny_bases.short_recipe import PRESETS, CaptionedScenes, ShortRecipe
from tools.tiny_bases.training import pixels

FEW_STEPS = ShortRecipe(
    "none",
    images=40,
    held_out_images=4,
    autoencoder_steps=2,
    autoencoder_batch_size=4,
    tag_steps=1,
    reading_steps=1,
    reading_batch_size=4,
    drawing_steps=2,
    drawing_batch_size=4,
    practice_questions=2,
)
LIMIT_BYTES = 5_000_000


@pytest.mark.parametrize("name", PRESETS)
def test_short_recipe_makes_a_base_and_reuses_finished_stages(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = replace(FEW_STEPS, model=name)
    short_recipe.pretrain(recipe, tmp_path / "base", tmp_path / "state")
    files = [path for path in (tmp_path / "base").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < LIMIT_BYTES
    weights = [tensor for path in files if path.suffix == ".safetensors" for tensor in load_file(path).values()]
    assert {tensor.dtype for tensor in weights if tensor.is_floating_point()} == {torch.float16}
    card = json.loads((tmp_path / "base/card.json").read_text())
    assert card["recipe"]["drawing_steps"] == 2
    assert {"answer_color", "tokenizer_exact"} <= card["scores"].keys()
    assert card["train_seconds"].keys() == {"autoencoder", "understanding", "drawing"}
    assert f"python -m tools.tiny_bases model={name}" in (tmp_path / "base/README.md").read_text()
    model = load_model(name.removesuffix("_tiny"), tmp_path / "base", options_of(name), torch.device("cpu"))
    assert all(bool(value.isfinite().all()) for value in model.state_dict().values() if value.is_floating_point())

    capsys.readouterr()
    short_recipe.pretrain(recipe, tmp_path / "second", tmp_path / "state")
    assert capsys.readouterr().out.count("loaded from") == 3
    second = load_model(model.family, tmp_path / "second", options_of(name), torch.device("cpu")).state_dict()
    assert all(torch.equal(value, second[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["janus_tiny", *PRESETS])
def test_shipped_cards_are_what_the_code_writes(name: str) -> None:
    folder = ROOT / "data/bases" / name
    card = json.loads((folder / "card.json").read_text())
    assert (folder / "README.md").read_text() == model_card(card)


@pytest.mark.parametrize("name", ["openuni_tiny", "harmon_tiny"])
def test_next_stage_preparation_gives_latents_unit_variance(name: str) -> None:
    torch.manual_seed(0)
    model = PRESETS[name].build()
    images = CaptionedScenes.from_seed(1, 32).images
    PRESETS[name].prepare_next_stage(model, pixels(images))
    assert float(short_recipe.encode_targets(model, images).std()) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("name", PRESETS)
def test_every_parameter_is_trained_by_some_stage(name: str) -> None:
    preset = PRESETS[name]
    model = preset.build()
    autoencoder = {id(parameter) for parameter in preset.autoencoder(model).parameters()}
    for key, parameter in model.named_parameters():
        by_later_stage = preset.learns_understanding(key) or preset.learns_generation(key)
        assert (id(parameter) in autoencoder) + by_later_stage == ("mar.class_emb" not in key), key  # unused by Harmon
    generation = {key for key, _ in model.named_parameters() if preset.learns_generation(key)}
    assert set(model.trainable()) <= generation


def test_command_line_chooses_the_recipe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[tuple[str, Path]] = []
    monkeypatch.setattr(
        "tools.tiny_bases.short_recipe.pretrain", lambda recipe, out, state: calls.append((recipe.model, out))
    )
    monkeypatch.setattr(
        "tools.tiny_bases.janus_recipe.pretrain", lambda recipe, out, state: calls.append(("janus_tiny", out))
    )
    monkeypatch.setattr(
        "tools.tiny_bases.detector.train_detector", lambda out, seed: calls.append(("scene_detector", out))
    )
    monkeypatch.setattr("torch.set_num_threads", lambda count: None)
    commands = ([], ["model=janus_tiny"], ["model=bagel_tiny"], ["scene_detector"])
    for words in (*commands, ["model=showo_tiny", "--out", str(tmp_path)]):
        assert main(words) == 0
    names, folders = zip(*calls, strict=True)
    assert names == ("janus_tiny", "janus_tiny", "bagel_tiny", "scene_detector", "showo_tiny")
    assert folders == (*(ROOT / "data/bases" / name for name in names[:4]), tmp_path)
    with pytest.raises(SystemExit):
        main(["model=bagel_7b"])
