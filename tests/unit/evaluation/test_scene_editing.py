"""Edits of scenes: what is asked for is possible and unambiguous; the right edit counts, and nothing else does."""

import random
import shutil
from dataclasses import dataclass, replace

import pytest

from reca.config import ROOT, compose
from reca.data.synthetic.scenes import MIN_GAP, Scene, Shape, relation, render, sample_scene
from reca.evaluation.benchmark import load_benchmark, read_scores
from reca.evaluation.benchmarks.scene_editing.prompts import CATEGORIES, make_edit, sample_edits
from reca.evaluation.benchmarks.scene_editing.rules import EditResult, evaluate_edit
from reca.evaluation.samples import to_tensor
from reca.runtime.errors import UserError
from reca.stages.generate import generate
from reca.stages.score import score

WORDS = ["evaluate.benchmarks=[scene_editing]", "evaluate.bootstrap_resamples=50", "hardware.threads=1"]
CONFIG = [*WORDS, "+evaluate.scene_editing.edits_per_category=8"]


@dataclass(frozen=True)
class Found:
    name: str
    color: str
    box: tuple[float, float, float, float]


def seen(*shapes, side=96):
    """Perfect detections of shapes."""
    edges = [(s.x - s.radius, s.y - s.radius, s.x + s.radius, s.y + s.radius) for s in shapes]
    return [Found(s.kind, s.color, tuple(side * edge for edge in box)) for s, box in zip(shapes, edges, strict=True)]


def verdict(edit, *shapes):
    return evaluate_edit(edit.metadata(), seen(*shapes), 96, 96)


@pytest.mark.parametrize("category", CATEGORIES)
def test_every_edit_can_be_made_and_names_one_shape(category):
    for number, edit in sample_edits(7, category, 60):
        scene = sample_scene(7, number)
        target = edit.target(scene)
        assert verdict(edit, *target.shapes) == EditResult(done=True, kept=True)
        assert not verdict(edit, *scene.shapes).done
        assert verdict(edit, *scene.shapes).kept
        for shape in filter(None, (edit.before, edit.after)):
            for all_shapes in (scene.shapes, target.shapes):
                assert sum((s.kind, s.color) == (shape.kind, shape.color) for s in all_shapes) <= 1
        pairs = [(a, b) for a in target.shapes for b in target.shapes if a is not b]
        assert all(max(abs(a.x - b.x), abs(a.y - b.y)) >= MIN_GAP for a, b in pairs)


CIRCLE, BAR, RING = (
    Shape("circle", "red", 0.2, 0.2, 0.15),
    Shape("bar", "blue", 0.7, 0.3, 0.15),
    Shape("ring", "green", 0.4, 0.75, 0.15),
)


def edit_of(category):
    """An edit of the circle, or a new shape next to it."""
    for number in range(1000):
        edit = make_edit(category, Scene((CIRCLE, BAR, RING), "light", 0), random.Random(number))
        if edit is not None and edit.before in (CIRCLE, None):
            return edit
    raise AssertionError(category)


@pytest.mark.parametrize("category", CATEGORIES)
def test_a_change_beside_the_edit_is_seen(category):
    edit = edit_of(category)
    right = [edit.after] if edit.after else []
    stranger = Shape("cross", "pink", 0.85, 0.85, 0.12)
    assert verdict(edit, BAR, RING, *([] if edit.before else [CIRCLE]), *right) == EditResult(done=True, kept=True)
    rest = [*edit.rest]
    last = rest[-1]
    elsewhere = replace(last, x=1 - last.x, y=1 - last.y)
    for edited in (rest[:-1], [*rest, stranger], [*rest[:-1], replace(last, color="pink")], [*rest[:-1], elsewhere]):
        assert not verdict(edit, *edited, *right).kept
    assert verdict(edit, *rest, stranger, *right).done


def test_a_recolored_shape_stays_where_it_was():
    edit = edit_of("recolor")
    assert not verdict(edit, *edit.rest, replace(edit.after, x=0.2, y=0.6)).done
    assert not verdict(edit, *edit.rest, edit.before, replace(edit.after, x=0.85, y=0.85)).done, "a second one came"


def test_a_moved_shape_stands_where_it_should():
    edit = edit_of("move")
    where, number = edit.relation
    assert relation(edit.after, edit.rest[number]) == where != relation(edit.before, edit.rest[number])
    assert edit.instruction.startswith(f"move the red circle {where} the ")
    assert verdict(edit, *edit.rest) == EditResult(done=False, kept=True), "a lost shape is not moved"
    assert verdict(edit, *edit.rest, edit.before, edit.after) == EditResult(done=False, kept=True), "nor a copied one"


def run(config, project):
    generate(config, project, "base", "scene_editing")
    score(config, project, "base", "scene_editing")
    return read_scores(project / "outputs/scores/base/scene_editing.json")


def test_an_editor_that_does_as_it_is_told_scores_one(project, use_model, perfect):
    config = compose(CONFIG)
    bench = load_benchmark("scene_editing", config, project)
    targets_by_edit = {}
    for category in CATEGORIES:
        for number, edit in sample_edits(bench._base, category, 8):
            scene = sample_scene(bench._base, number)
            targets_by_edit[edit.instruction, render([scene])[0].tobytes()] = edit.target(scene)

    class Editor(perfect):
        def edit(self, images, instructions, sampling, rng):
            originals = [((i + 1) * 127.5).round().byte().permute(1, 2, 0).numpy().tobytes() for i in images]
            targets = [targets_by_edit[request] for request in zip(instructions, originals, strict=True)]
            return list(to_tensor(list(render(targets, 48))))

    use_model(Editor)
    scores = run(config, project)
    assert scores.overall.value >= 0.96
    assert (scores.expected, scores.failed, sorted(scores.categories)) == (32, 0, sorted(CATEGORIES))
    assert scores.judge.name == "scene_detector"


def idle_editor(editor):
    class IdleEditor(editor):
        def edit(self, images, instructions, sampling, rng):
            return list(images)

    return IdleEditor


def test_an_editor_that_gives_the_image_back_scores_zero(project, use_model, perfect):
    use_model(idle_editor(perfect))
    scores = run(compose(CONFIG), project)
    assert scores.overall.value == 0
    assert set(scores.details["done"].values()) == {0}
    assert min(scores.details["kept"].values()) >= 0.9


def test_a_damaged_image_is_failed(project, use_model, perfect):
    use_model(idle_editor(perfect))
    generate(compose(CONFIG), project, "base", "scene_editing")
    (project / "outputs/samples/base/scene_editing/add-003.png").write_bytes(b"no image")
    score(compose(CONFIG), project, "base", "scene_editing")
    scores = read_scores(project / "outputs/scores/base/scene_editing.json")
    assert (scores.expected, scores.failed) == (32, 1)


def test_a_family_that_does_not_edit_is_told_so(project, use_model):
    with pytest.raises(UserError, match="does not edit images; leave this benchmark out of evaluate.benchmarks"):
        generate(compose(CONFIG), project, "base", "scene_editing")


def test_the_tiny_bagel_edits(project):
    shutil.copytree(ROOT / "data/bases/bagel_tiny", project / "data/bases/bagel_tiny")
    words = ["model=bagel_tiny", "generate.num_steps=2", *WORDS, "+evaluate.scene_editing.edits_per_category=1"]
    scores = run(compose(words), project)
    assert (scores.expected, scores.failed) == (4, 0)


def test_the_preset_adds_it_to_the_default():
    assert compose(["evaluate=scene_editing"]).evaluate.benchmarks == (*compose().evaluate.benchmarks, "scene_editing")
