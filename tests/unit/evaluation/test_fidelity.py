"""What of a scene comes back: exact values on made-up detections; photographs; the plan's errors."""

import pytest
from PIL import Image
from skimage import data

from reca.config import compose
from reca.data.manifest import write_manifest
from reca.data.synthetic.scenes import sample_scene
from reca.evaluation.benchmark import load_benchmark, read_items, read_scores
from reca.evaluation.benchmarks.fidelity.benchmark import compare_scene
from reca.evaluation.judges.scene_detector import Detection
from reca.evaluation.samples import read_manifest
from reca.runtime.errors import UserError
from reca.stages.generate import generate
from reca.stages.score import score
from tests.unit.evaluation.judges.test_image_encoder import save_clip, save_dinov2

ITEMS = "scores/base/fidelity.items.jsonl"
RED, BLUE, GREEN = ("circle", "red"), ("square", "blue"), ("ring", "green")
TRUTH = {
    "objects": [list(RED), list(BLUE), list(GREEN), list(GREEN)],
    "pairs": [[list(RED), "left of", list(BLUE)]],
}


def at(identity: tuple[str, str], x: float, y: float, score: float = 0.9) -> Detection:
    return Detection(*identity, (x - 3, y - 3, x + 3, y + 3), score)


def test_everything_is_there():
    result = [at(RED, 4, 4), at(BLUE, 18, 4), at(GREEN, 4, 18), at(GREEN, 18, 18)]
    expected = {"objects": 1, "counts": 1, "relations": 1, "exact_scene": 1}
    assert compare_scene(TRUTH, result) == expected
    assert compare_scene(TRUTH, [*result, at(RED, 12, 12, score=0.2)]) == expected  # too unsure to count


def test_parts_are_there():
    result = [at(RED, 18, 4), at(BLUE, 4, 4), at(GREEN, 4, 18), at(RED, 18, 18)]
    # Three of four objects, four in number; red circle stands twice, so the pair is not right.
    assert compare_scene(TRUTH, result) == {"objects": 0.75, "counts": 1, "relations": 0, "exact_scene": 0}
    assert compare_scene(TRUTH, result[:2]) == {"objects": 0.5, "counts": 0, "relations": 0, "exact_scene": 0}
    assert compare_scene(TRUTH, []) == {"objects": 0, "counts": 0, "relations": 0, "exact_scene": 0}


def test_a_scene_without_a_pair_has_no_say_in_relations():
    truth = {"objects": [list(RED), list(RED)], "pairs": []}
    assert "relations" not in compare_scene(truth, [at(RED, 4, 4)])


def test_no_image_is_not_a_zero():
    assert set(compare_scene(TRUTH, None).values()) == {None}


def test_pairs_are_of_shapes_that_occur_once(config, project):
    for row in load_benchmark("fidelity", config, project).plan():
        objects = [tuple(identity) for identity in row["metadata"]["objects"]]
        for first, _, second in row["metadata"]["pairs"]:
            assert objects.count(tuple(first)) == objects.count(tuple(second)) == 1


def test_scenes_are_none_that_a_model_was_trained_on(config, project):
    bench = load_benchmark("fidelity", config, project)
    ours = set(bench._scenes)
    training = {sample_scene(seed, index) for seed in (*range(20), 1 << 32) for index in range(100)}
    assert not ours & training


def photo_config(*words):
    return compose(
        ["data=folder", "data.path=photos", "data.held_out_fraction=0.5", "evaluate.fidelity.num_images=4",
         "evaluate.bootstrap_resamples=50", "hardware.threads=1", "data.min_side=16", *words]
    )  # fmt: skip


def ingest_photographs(project):
    from reca.stages.ingest import ingest

    names = ("astronaut", "coffee", "chelsea", "rocket", "camera", "coins", "brick", "grass", "gravel", "text")
    (project / "photos").mkdir()
    for name in names:
        Image.fromarray(getattr(data, name)()).convert("RGB").resize((96, 64)).save(project / f"photos/{name}.png")
    ingest(photo_config(), project)


def test_photographs_are_measured_by_similarity_alone(project, use_model):
    ingest_photographs(project)
    generate(photo_config(), project, "base", "fidelity")
    rows = read_manifest(project / "outputs/samples/base/fidelity")
    assert rows
    assert all((project / "outputs/samples/base/fidelity" / row["original"]).is_file() for row in rows)
    score(photo_config(), project, "base", "fidelity")
    scores = read_scores(project / "outputs/scores/base/fidelity.json")
    assert list(scores.categories) == ["similarity"]
    assert scores.overall.value == pytest.approx(1)
    assert scores.protocol == "variant: reconstruction of held-out photographs"
    assert len(read_items(project / "outputs/scores/base/fidelity.items.jsonl")) == len(rows)


def test_encoders_are_categories_beside_the_overall_score(project, use_model):
    save_clip(project / "data/judges/clip-tiny")
    save_dinov2(project / "data/judges/dinov2-tiny")
    ingest_photographs(project)
    generate(photo_config(), project, "base", "fidelity")
    folder = project / "outputs/samples/base/fidelity"
    rows = read_manifest(folder)
    size = Image.open(folder / rows[0]["original"]).size
    Image.fromarray(data.rocket()).resize(size).save(folder / rows[0]["file"])  # a drawing of something else
    (folder / rows[1]["file"]).write_bytes(b"no image")
    score(photo_config(), project, "base", "fidelity")
    without = read_scores(project / "outputs/scores/base/fidelity.json")
    config = photo_config("evaluate.fidelity.encoders=[me/clip-tiny@main,me/dinov2-tiny@main]")
    score(config, project, "base", "fidelity")
    scores = read_scores(project / "outputs/scores/base/fidelity.json")
    assert list(scores.categories) == ["clip-tiny", "dinov2-tiny", "similarity"]
    assert scores.overall == without.overall
    assert scores.judge.name == "ssim+clip-tiny+dinov2-tiny"
    items = {(item.category, item.prompt_id): item.values for item in read_items(folder.parents[2] / ITEMS)}
    for name in ("clip-tiny", "dinov2-tiny"):
        assert items[name, rows[0]["prompt_id"]][0] < 0.9999
        assert items[name, rows[1]["prompt_id"]] == (None,)
        assert items[name, rows[2]["prompt_id"]][0] == pytest.approx(1)
    with pytest.raises(UserError, match="the judge me/other@main is missing"):
        score(photo_config("evaluate.fidelity.encoders=[me/other@main]"), project, "base", "fidelity")


def test_a_data_set_that_holds_nothing_back_is_refused(project, use_model):
    folder = project / "outputs/dataset"
    folder.mkdir(parents=True)
    write_manifest(folder, [{"id": "0" * 16, "split": "train"}])
    with pytest.raises(UserError, match=r"has no held-out images.*data\.held_out_fraction"):
        generate(photo_config(), project, "base", "fidelity")
