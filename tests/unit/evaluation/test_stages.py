"""``generate`` and ``score`` with models whose ability is known: 1 and 0, resumed and whole, complete and damaged."""

import json
from pathlib import Path

import pytest

from reca.config.sections import SamplingSettings
from reca.evaluation.benchmark import load_benchmark, read_items, read_scores
from reca.evaluation.samples import read_manifest
from reca.runtime.errors import UserError
from reca.runtime.hashing import file_digest, weights_digest
from reca.stages.generate import generate
from reca.stages.result import read_result
from reca.stages.score import score

SCENES = "outputs/samples/base/scenes"


def run(config, project, benchmark, variant="base"):
    generate(config, project, variant, benchmark)
    score(config, project, variant, benchmark)
    return read_scores(project / f"outputs/scores/{variant}/{benchmark}.json")


def digests(folder: Path) -> dict[str, str]:
    return {path.name: file_digest(path) for path in folder.iterdir() if path.name != "result.json"}


@pytest.mark.parametrize("benchmark", ["scenes", "understanding", "fidelity"])
def test_a_perfect_model_scores_one(config, project, use_model, benchmark):
    scores = run(config, project, benchmark)
    assert scores.overall.value >= 0.98
    assert scores.failed == 0
    assert scores.scored == scores.expected
    assert scores.checkpoint == weights_digest(project / config.model.checkpoint)


@pytest.mark.parametrize("benchmark", ["scenes", "understanding", "fidelity"])
def test_a_model_that_draws_noise_scores_zero(config, project, use_model, noise, benchmark):
    use_model(noise)
    scores = run(config, project, benchmark, "aligned")
    assert scores.overall.value <= 0.02
    assert scores.variant == "aligned"


def test_scenes_follow_the_protocol(config, project, use_model):
    scores = run(config, project, "scenes")
    assert list(scores.categories) == ["color_attr", "colors", "counting", "position", "single_object", "two_object"]
    assert {category.n for category in scores.categories.values()} == {5}
    assert scores.expected == 60
    assert scores.images_per_prompt == 2
    assert scores.judge.name == "scene_detector"
    assert scores.judge.accuracy["exact_scene"] >= 0.99
    items = read_items(project / "outputs/scores/base/scenes.items.jsonl")
    assert len(items) == 30
    assert all(len(item.values) == len(item.files) == len(item.details) == 2 for item in items)
    assert all(detail["seen"] for item in items for detail in item.details)


def test_the_manifest_says_how_every_sample_was_made(config, project, use_model):
    generate(config, project, "base", "scenes")
    rows = read_manifest(project / SCENES)
    assert len({row["seed"] for row in rows}) == len({row["file"] for row in rows}) == len(rows) == 60
    assert {row["guidance_scale"] for row in rows} == {config.generate.guidance_scale}
    assert {row["checkpoint"] for row in rows} == {weights_digest(project / config.model.checkpoint)}
    assert all((project / SCENES / row["file"]).is_file() for row in rows)
    result = read_result(project / SCENES)
    assert result["params"]["generate"] == config.to_dict()["generate"]
    assert result["expected"] == 60


@pytest.mark.parametrize("benchmark", ["scenes", "understanding", "fidelity"])
def test_batch_size_changes_nothing(config, project, use_model, benchmark):
    folder = project / f"outputs/samples/base/{benchmark}"
    generate(config, project, "base", benchmark)
    expected = digests(folder)
    hardware = config.hardware.model_copy(update={"generate_batch_size": 7})
    generate(config.model_copy(update={"hardware": hardware}), project, "base", benchmark)
    assert digests(folder) == expected


def test_more_prompts_leave_the_others_samples_alone(config, project):
    more = config.evaluate.scenes.model_copy(update={"images_per_prompt": 4})
    evaluate = config.evaluate.model_copy(update={"scenes": more})
    few = {(r["prompt_id"], r["index"]): r for r in load_benchmark("scenes", config, project).plan()}
    larger = config.model_copy(update={"evaluate": evaluate})
    many = {(r["prompt_id"], r["index"]): r for r in load_benchmark("scenes", larger, project).plan()}
    assert few.items() <= many.items()


class Killed(BaseException):
    """An exception that, like SIGKILL, no handler catches."""


def dying(perfect, after: int) -> type:
    class Dying(perfect):
        def generate(self, prompts, sampling, rng):
            if len(perfect.drawn_prompts) >= after:
                raise Killed
            return super().generate(prompts, sampling, rng)

    return Dying


def test_a_killed_generation_goes_on_where_it_stopped(config, project, use_model, perfect):
    generate(config, project, "base", "scenes")
    expected = digests(project / SCENES)
    perfect.drawn_prompts.clear()
    use_model(dying(perfect, after=32))
    with pytest.raises(Killed):
        generate(config, project, "base", "scenes")
    assert len(perfect.drawn_prompts) == 32
    use_model(perfect)
    generate(config, project, "base", "scenes")
    assert len(perfect.drawn_prompts) == 60
    assert digests(project / SCENES) == expected
    assert not list((project / ".reca/samples/base/scenes").iterdir())


@pytest.mark.parametrize("damage", ["image", "index", "missing"])
def test_damaged_leftovers_are_made_again(config, project, use_model, perfect, damage):
    generate(config, project, "base", "scenes")
    expected = digests(project / SCENES)
    perfect.drawn_prompts.clear()
    use_model(dying(perfect, after=32))
    with pytest.raises(Killed):
        generate(config, project, "base", "scenes")
    (state,) = (project / ".reca/samples/base/scenes").iterdir()
    part = sorted(state.glob("part-*.json"))[0]
    if damage == "index":
        part.write_text(part.read_text()[:100])
    else:
        image = state / json.loads(part.read_text())["rows"][0]["file"]
        image.write_bytes(image.read_bytes()[:50]) if damage == "image" else image.unlink()
    use_model(perfect)
    generate(config, project, "base", "scenes")
    assert len(perfect.drawn_prompts) > 60
    assert digests(project / SCENES) == expected


def test_other_weights_do_not_take_over_leftovers(config, project, use_model, perfect):
    use_model(dying(perfect, after=32))
    with pytest.raises(Killed):
        generate(config, project, "base", "scenes")
    (project / config.model.checkpoint / "model.safetensors").write_bytes(b"another base")
    use_model(perfect)
    generate(config, project, "base", "scenes")
    assert len(perfect.drawn_prompts) == 32 + 60


def test_leftovers_of_other_settings_stay_apart(config, project, use_model, perfect):
    use_model(dying(perfect, after=32))
    with pytest.raises(Killed):
        generate(config, project, "base", "scenes")
    generation = config.generate.model_copy(update={"guidance_scale": 5.0})
    use_model(perfect)
    generate(config.model_copy(update={"generate": generation}), project, "base", "scenes")
    assert len(perfect.drawn_prompts) == 32 + 60


def test_a_benchmark_has_its_own_sampling(config, project, use_model, perfect, capsys):
    use_model(dying(perfect, after=32))
    with pytest.raises(Killed):
        generate(config, project, "base", "scenes")
    use_model(perfect)
    own = {"scenes": SamplingSettings(guidance_scale=5.0)}
    changed = config.model_copy(update={"generate": config.generate.model_copy(update={"benchmarks": own})})
    scores = run(changed, project, "scenes")
    assert len(perfect.drawn_prompts) == 32 + 60, "leftovers of the general sampling are not used"
    assert scores.settings["generate"] == {"guidance_scale": 5.0, "temperature": 1.0}
    assert {row["guidance_scale"] for row in read_manifest(project / SCENES)} == {5.0}
    assert "scenes has its own sampling" in capsys.readouterr().out
    generate(changed, project, "base", "understanding")
    rows = read_manifest(project / "outputs/samples/base/understanding")
    assert {row["guidance_scale"] for row in rows} == {config.generate.guidance_scale}


def test_missing_weights_are_named_with_the_way_out(config, project, use_model):
    weights = project / config.model.checkpoint / "model.safetensors"
    weights.unlink()
    with pytest.raises(UserError, match=r"janus_tiny holds no file \*\.safetensors"):
        generate(config, project, "base", "scenes")
    weights.parent.rmdir()
    with pytest.raises(UserError, match=r"janus_tiny is missing: there is no base model"):
        generate(config, project, "base", "scenes")


def test_unknown_names_are_refused(config, project):
    with pytest.raises(UserError, match="unknown benchmark 'best'; known: dpgbench, fidelity"):
        generate(config, project, "base", "best")
    with pytest.raises(UserError, match="unknown model 'best'; known: base, aligned"):
        generate(config, project, "best", "scenes")


def test_an_unreadable_sample_is_failed_and_not_scored(config, project, use_model):
    generate(config, project, "base", "scenes")
    (project / SCENES / "colors-000_1.png").write_bytes(b"not a PNG")
    score(config, project, "base", "scenes")
    scores = read_scores(project / "outputs/scores/base/scenes.json")
    assert (scores.expected, scores.scored, scores.failed) == (60, 59, 1)
    assert scores.overall.value >= 0.98
    item = next(
        i for i in read_items(project / "outputs/scores/base/scenes.items.jsonl") if i.prompt_id == "colors-000"
    )
    assert item.values == (1.0, None)
    assert item.details[1]["reasons"] == ["the file is no image"]


def test_incomplete_samples_are_refused(config, project, use_model):
    with pytest.raises(UserError, match="make the samples first with `reca generate base scenes`"):
        score(config, project, "base", "scenes")
    generate(config, project, "base", "scenes")
    manifest = project / SCENES / "manifest.jsonl"
    lines = manifest.read_text().splitlines(keepends=True)
    manifest.write_text("".join(lines[:-1]))
    with pytest.raises(UserError, match="lists 59 of 60 samples; run `reca generate base scenes`"):
        score(config, project, "base", "scenes")
    manifest.write_text("".join(lines))
    (project / SCENES / "colors-000_1.png").unlink()
    with pytest.raises(UserError, match=r"colors-000_1\.png is missing, although manifest\.jsonl names it"):
        score(config, project, "base", "scenes")


def test_samples_of_another_prompt_set_are_refused(config, project, use_model):
    generate(config, project, "base", "scenes")
    other = config.evaluate.scenes.model_copy(update={"seed": 99})
    evaluate = config.evaluate.model_copy(update={"scenes": other})
    with pytest.raises(UserError, match=r"was made for evaluate\.scenes"):
        score(config.model_copy(update={"evaluate": evaluate}), project, "base", "scenes")


def test_a_judge_whose_card_describes_other_weights_is_refused(config, project, use_model):
    generate(config, project, "base", "scenes")
    card = project / "data/bases/scene_detector/card.json"
    card.write_text(card.read_text().replace('"sha256": "', '"sha256": "0'))
    with pytest.raises(UserError, match="describes other weights"):
        score(config, project, "base", "scenes")


def test_scoring_twice_gives_the_same_bytes(config, project, use_model):
    run(config, project, "scenes")
    folder = project / "outputs/scores/base"
    first = digests(folder)
    score(config, project, "base", "scenes")
    assert digests(folder) == first
