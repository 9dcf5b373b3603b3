"""The short recipe: every family's base comes out whole, half as wide on disk, and told of."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from reca.config import ROOT
from reca.models.base import load_model
from tools.tiny_bases import main, short_recipe
from tools.tiny_bases.presets import options_of
from tools.tiny_bases.short_recipe import PRESETS, Pool, Recipe
from tools.tiny_bases.training import pixels

SHORT = Recipe(
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
def test_a_base_is_made_and_taken_up_again(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = replace(SHORT, model=name)
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
    short_recipe.pretrain(recipe, tmp_path / "again", tmp_path / "state")
    assert capsys.readouterr().out.count("kept from") == 3
    again = load_model(model.family, tmp_path / "again", options_of(name), torch.device("cpu")).state_dict()
    assert all(torch.equal(value, again[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["openuni_tiny", "harmon_tiny"])
def test_latents_get_unit_variance(name: str) -> None:
    torch.manual_seed(0)
    model = PRESETS[name].build()
    images = pixels(Pool.of(1, 32).images)
    PRESETS[name].settle(model, images)
    assert float(short_recipe._targets(model, Pool.of(1, 32).images).std()) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("name", PRESETS)
def test_every_part_is_trained_by_some_stage(name: str) -> None:
    preset = PRESETS[name]
    model = preset.build()
    inside = {id(parameter) for parameter in preset.autoencoder(model).parameters()}
    for key, parameter in model.named_parameters():
        trained = (id(parameter) in inside) + (preset.reads(key) or preset.draws(key))
        assert trained == ("mar.class_emb" not in key), key  # of Harmon's checkpoints, and read by nothing
    assert set(model.trainable()) <= {key for key, _ in model.named_parameters() if preset.draws(key)}


def test_the_command_line_chooses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made: list[tuple[str, Path]] = []

    def record(recipe: object, out: Path, state: Path) -> None:
        made.append((getattr(recipe, "model", "janus_tiny"), out))

    monkeypatch.setattr("tools.tiny_bases.short_recipe.pretrain", record)
    monkeypatch.setattr("tools.tiny_bases.janus_recipe.pretrain", record)
    monkeypatch.setattr("torch.set_num_threads", lambda count: None)
    for words in ([], ["model=janus_tiny"], ["model=bagel_tiny"], ["model=showo_tiny", "--out", str(tmp_path)]):
        assert main(words) == 0
    names, folders = zip(*made, strict=True)
    assert names == ("janus_tiny", "janus_tiny", "bagel_tiny", "showo_tiny")
    assert folders == (*(ROOT / "data/bases" / name for name in names[:3]), tmp_path)
    with pytest.raises(SystemExit):
        main(["model=bagel_7b"])
