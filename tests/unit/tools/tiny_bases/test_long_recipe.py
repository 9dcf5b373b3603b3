"""Tiny bases: the long recipe makes a base as float16 with its card, trains the right parts, and resumes."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from reca.data.synthetic.scenes import RELATIONS, SHAPES, benchmark_prompts, render, sparse_caption
from reca.models.base import Sampling, load_model
from reca.runtime.seeding import SampleRng
from tools.tiny_bases import evaluation, flow, long_recipe, openuni_tiny
from tools.tiny_bases.autoencoder import AutoencoderRecipe
from tools.tiny_bases.flow import DrawingRecipe
from tools.tiny_bases.long_recipe import LongRecipe
from tools.tiny_bases.presets import options_of
from tools.tiny_bases.probes import Probes
from tools.tiny_bases.scene_labels import COLOR_NAMES, UNLABELED, random_statement, to_labels, word_tags
from tools.tiny_bases.scene_streams import render_stream
from tools.tiny_bases.training import pixels
from tools.tiny_bases.understanding import UnderstandingRecipe

FEW_STEPS = LongRecipe(
    autoencoder_images=40,
    study_images=40,
    gallery_images=40,
    held_out_images=4,
    drawn_prompts=1,
    autoencoder=AutoencoderRecipe(steps=2, batch_size=4),
    understanding=UnderstandingRecipe(
        tag_steps=2,
        tag_batch_size=4,
        joint_steps=2,
        refine_steps=2,
        vision_steps=2,
        vision_batch_size=4,
        batch_size=4,
        questions=2,
        statements=40,
    ),
    drawing=DrawingRecipe(steps=2, batch_size=4),
)
LIMIT_BYTES = 6_000_000


def test_long_recipe_makes_a_base_and_reuses_finished_stages(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long_recipe.pretrain(FEW_STEPS, tmp_path / "base", tmp_path / "state")
    files = [path for path in (tmp_path / "base").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < LIMIT_BYTES
    weights = [tensor for path in files if path.suffix == ".safetensors" for tensor in load_file(path).values()]
    assert {tensor.dtype for tensor in weights if tensor.is_floating_point()} == {torch.float16}
    card = json.loads((tmp_path / "base/card.json").read_text())
    assert card["recipe"]["drawing"]["steps"] == 2
    assert {"answer_color", "tokenizer_exact", "probe_image_relation", "draws_overall"} <= card["scores"].keys()
    assert card["train_seconds"].keys() == {"autoencoder", "understanding", "drawing"}
    assert card["machine"] in (tmp_path / "base/README.md").read_text()
    model = load_model("openuni", tmp_path / "base", options_of("openuni_tiny"), torch.device("cpu"))
    assert all(bool(value.isfinite().all()) for value in model.state_dict().values() if value.is_floating_point())

    assert "drawing 2/2" in capsys.readouterr().out
    long_recipe.pretrain(FEW_STEPS, tmp_path / "second", tmp_path / "state")
    assert "/2" not in capsys.readouterr().out  # no step was taken
    second = load_model("openuni", tmp_path / "second", options_of("openuni_tiny"), torch.device("cpu")).state_dict()
    assert all(torch.equal(value, second[key]) for key, value in model.state_dict().items())


def test_every_parameter_is_trained_by_one_stage() -> None:
    model = openuni_tiny.build()
    for key, _ in model.named_parameters():
        stages = (
            key.startswith("network.vae."),
            openuni_tiny.learns_understanding(key),
            openuni_tiny.learns_generation(key),
        )
        assert sum(stages) == 1, key
        assert openuni_tiny.learns_understanding(key) or not openuni_tiny.learns_patches(key)
    generation = {key for key, _ in model.named_parameters() if openuni_tiny.learns_generation(key)}
    assert set(model.trainable()) == generation | {"network.meta_queries"}


def test_latents_are_scaled_to_unit_variance() -> None:
    torch.manual_seed(0)
    model = openuni_tiny.build()
    images = pixels(render_stream(1, 32)[1])
    openuni_tiny.scale_latents(model, images)
    with torch.no_grad():
        assert float(model.network.encode(images).std()) == pytest.approx(1, abs=0.05)


def test_conditions_have_the_names_of_their_queries() -> None:
    torch.manual_seed(0)
    model = openuni_tiny.build()
    rng = random.Random(0)
    states = flow.caption_states(model, [sparse_caption(scene, rng) for scene in render_stream(1, 300)[0]])
    assert states.shape == (301, len(SHAPES), openuni_tiny.WIDTH)
    states = 0.05 * states + states.roll(1, 1)[:, :1]  # all of one query's states, with little of their own
    flow.prepare(model, states)
    with torch.no_grad():
        conditions = model.network.condition(states)
    assert float(conditions.mean((0, 1)).abs().max()) < 1e-3
    apart, before = ((s[:, 0] - s[:, 1]).norm(dim=-1).mean() / s.std() for s in (conditions, states))
    assert float(apart) > 1.5 * float(before)
    weight, mean = flow.named_states(states)
    assert torch.allclose(conditions, (states - mean) @ weight.T, atol=1e-3)


def test_nouns_are_tagged_with_their_own_facts() -> None:
    rng = random.Random(3)
    sentences, facts = zip(*(random_statement(rng) for _ in range(200)), strict=True)
    tags = word_tags(sentences, to_labels(facts))
    colors = relations = 0
    for place, row, color, count, relation in zip(
        tags.words.tolist(),
        tags.rows.tolist(),
        tags.colors.tolist(),
        tags.counts.tolist(),
        tags.relations.tolist(),
        strict=True,
    ):
        words = sentences[row].split()
        if color != UNLABELED:
            colors += 1
            assert words[place - 1] == COLOR_NAMES[color]
        assert (count == 1) == (words[place] in SHAPES)
        if relation != UNLABELED:
            relations += 1
            assert RELATIONS[{0: 1, 1: 0, 2: 3, 3: 2}[relation]] in sentences[row]
    assert colors > 50
    assert relations > 20


def test_word_states_are_those_of_the_captions_words() -> None:
    torch.manual_seed(0)
    model = openuni_tiny.build()
    texts = ["a photo of a red circle", "two bars"]
    with torch.no_grad():
        states, words = openuni_tiny.word_states(model, texts)
        assert torch.equal(states, openuni_tiny.states(model, texts))
        changed, after = openuni_tiny.word_states(model, ["a photo of a blue circle", "two bars"])
    assert torch.equal(words[0, :4], after[0, :4])  # causal: words before the changed one are the same
    assert not torch.equal(words[0, 4], after[0, 4])
    assert not torch.equal(states[0], changed[0])


def test_word_loss_ignores_what_a_sentence_leaves_open() -> None:
    tags = word_tags(["circles"], to_labels([random_statement(random.Random(0))[1]]))
    tags = replace(tags, **{name: torch.tensor([UNLABELED]) for name in ("colors", "counts", "relations")})
    assert float(Probes(8).word_loss(torch.randn(1, 8), tags)) == 0


def test_drawing_scores_follow_the_benchmarks_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    model = openuni_tiny.build()
    prompts = {entry["prompt"]: entry for entry in benchmark_prompts(evaluation.PROMPT_SEED, 3)}
    scenes = render_stream(7, 3000)[0]

    def draw(texts: list[str], sampling: Sampling, rng: SampleRng) -> torch.Tensor:
        """Single objects as asked for, and one scene for all other prompts."""
        chosen = []
        for text in texts:
            wanted = [clause["class"] for clause in prompts[text]["include"]]
            fits = [s for s in scenes if [shape.kind for shape in s.shapes] == wanted]
            chosen.append(fits[0] if prompts[text]["tag"] == "single_object" else scenes[0])
        return pixels(torch.from_numpy(render(chosen, openuni_tiny.IMAGE_SIZE)).permute(0, 3, 1, 2))

    monkeypatch.setattr(model, "generate", draw)
    scores = evaluation.drawing_scores(model, prompts_per_category=3, images_per_prompt=2)
    assert scores["draws_single_object"] == 1
    assert scores["draws_overall"] == pytest.approx(
        sum(value for name, value in scores.items() if name != "draws_overall") / 6
    )
    assert scores["draws_color_attr"] < 1
