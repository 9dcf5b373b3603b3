"""Captions, answers and metadata of scenes are true for any seed and index."""

import random
import re
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reca.data.synthetic.scenes import (
    BACKGROUNDS,
    COLORS,
    MAX_OBJECTS,
    NUMBERS,
    RELATIONS,
    SHAPES,
    Scene,
    Shape,
    benchmark_prompts,
    full_caption,
    metadata,
    plural,
    questions,
    relation,
    render,
    sample_scene,
    signed_distance,
    sparse_caption,
)

SCENES = st.builds(sample_scene, st.integers(0, 2**33), st.integers(0, 10**6))
RNGS = st.integers(0, 2**32).map(random.Random)
OPPOSITE = dict(zip(RELATIONS, ("right of", "left of", "below", "above"), strict=True))
KINDS = {**{kind: kind for kind in SHAPES}, **{plural(kind): kind for kind in SHAPES}}
PART = re.compile(
    r"(?:(?P<number>an?|one|two|three|four) )?"
    rf"(?:(?P<color>{'|'.join(COLORS)}) )?"
    rf"(?P<noun>{'|'.join(sorted(KINDS, key=len, reverse=True))})"
)


def check_caption(scene: Scene, caption: str, full: bool) -> None:
    """Parse a caption and compare every part with the scene."""
    groups = scene.groups()
    parts = re.split(rf" and | (?={'|'.join(RELATIONS)})", caption)
    mentioned: list[str] = []
    for words in parts:
        where = next((r for r in RELATIONS if words.startswith(r)), None)
        part = PART.fullmatch(words.removeprefix(where or "").strip())
        assert part, f"{words!r} in {caption!r}"
        kind = KINDS[part["noun"]]
        shapes = groups[kind]
        mentioned.append(kind)
        if part["number"] in ("a", "an"):
            assert len(shapes) == 1
        elif part["number"]:
            assert part["number"] == NUMBERS[len(shapes)]
        else:
            assert len(shapes) > 1
        if part["color"]:
            assert {shape.color for shape in shapes} == {part["color"]}
        if where:
            first = groups[mentioned[-2]]
            assert len(first) == len(shapes) == 1
            assert relation(first[0], shapes[0]) == where
    assert len(set(mentioned)) == len(mentioned)
    if full:
        assert set(mentioned) == set(groups)


@given(SCENES, RNGS)
def test_captions_are_true(scene: Scene, rng: random.Random) -> None:
    check_caption(scene, full_caption(scene, rng), full=True)
    for _ in range(5):
        check_caption(scene, sparse_caption(scene, rng), full=False)
    check_caption(scene, sparse_caption(scene, rng, 1, 1, 1, 1), full=False)


@given(SCENES, RNGS)
def test_questions_are_answered_truthfully(scene: Scene, rng: random.Random) -> None:
    sampled = questions(scene, rng)
    assert len({question.kind for question in sampled}) == len(sampled)
    for question in sampled:
        assert question.answer == answer(scene, question.text)


def answer(scene: Scene, text: str) -> str:
    """Compute the answer from the scene alone."""
    words = text.split()
    if text.startswith("is there"):
        return "yes" if any([s.color, s.kind] == words[-2:] for s in scene.shapes) else "no"
    if text.startswith("how many"):
        return NUMBERS[sum(plural(s.kind) == words[2] for s in scene.shapes)]
    if text.startswith("what color"):
        (color,) = {s.color for s in scene.shapes if s.kind == words[-1]}
        return color
    if text.startswith("what shape"):
        (kind,) = {s.kind for s in scene.shapes if s.color == words[-1]}
        return kind
    (first,), (second,) = ([s for s in scene.shapes if s.kind == kind] for kind in (words[3], words[-1]))
    return relation(first, second)


@given(SCENES)
def test_metadata_is_satisfied_by_its_own_scene(scene: Scene) -> None:
    described = metadata(scene)
    groups = scene.groups()
    assert [clause["class"] for clause in described["include"]] == list(groups)
    for clause in described["include"]:
        shapes = groups[clause["class"]]
        assert len(shapes) == clause["count"]
        assert ("color" in clause) == (len({shape.color for shape in shapes}) == 1)
        assert all(shape.color == clause.get("color", shape.color) for shape in shapes)
        if "position" in clause:
            where, index = clause["position"]
            (target,) = groups[described["include"][index]["class"]]
            assert relation(shapes[0], target) == where
    assert all(len(groups[clause["class"]]) < clause["count"] for clause in described["exclude"])


@given(SCENES)
def test_shapes_are_inside_and_never_overlap(scene: Scene) -> None:
    """Shapes are clipped to their radius here; only tips of diamonds go further, see the next test."""
    assert 1 <= len(scene.shapes) <= MAX_OBJECTS
    size = 96  # finer than the images, so that the smallest overlap would show
    frame = 8  # points outside the image, which no shape may reach
    grid = ((np.arange(-frame, size + frame, dtype=np.float32) + 0.5) / size).astype(np.float32)
    covered = np.zeros((len(grid), len(grid)), int)
    for shape in scene.shapes:
        x, y = (grid[None, :] - shape.x) / shape.radius, (grid[:, None] - shape.y) / shape.radius
        inside = (signed_distance(shape.kind, x, y) < 0) & (np.maximum(np.abs(x), np.abs(y)) <= 1)
        assert inside.any()
        assert inside.sum() == inside[frame:-frame, frame:-frame].sum()
        covered += inside
    assert covered.max() == 1


def test_only_tips_of_diamonds_exceed_the_radius() -> None:
    """The excess is a tenth, 0.39 pixels at most: thin tips may just touch another shape or the image's edge."""
    line = np.linspace(-1.5, 1.5, 601, dtype=np.float32)
    x, y = np.meshgrid(line, line)
    reach = {kind: float(np.maximum(abs(x), abs(y))[signed_distance(kind, x, y) < 0].max()) for kind in SHAPES}
    assert 1.05 < reach.pop("diamond") < 1.1
    assert max(reach.values()) <= 1


@given(SCENES)
def test_relations_are_antisymmetric(scene: Scene) -> None:
    for first, second in combinations(scene.shapes, 2):
        assert relation(second, first) == OPPOSITE[relation(first, second)]


@given(st.integers(0, 2**40), st.integers(0, 10**6), st.sampled_from([16, 24, 48]))
def test_rendering_is_a_function_of_seed_and_index(seed: int, index: int, size: int) -> None:
    scene, neighbour = sample_scene(seed, index), sample_scene(seed, index + 1)
    assert scene == sample_scene(seed, index)
    single, batch = render([scene], size), render([neighbour, scene, neighbour], size)
    assert single.shape == (1, size, size, 3)
    assert (batch[1] == single[0]).all()
    assert (batch[0] == batch[2]).all()


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("kind", SHAPES)
def test_every_shape_shows_its_colour_on_every_background(kind: str, background: str) -> None:
    for color, rgb in COLORS.items():
        image = render([Scene((Shape(kind, color, 0.5, 0.5, 0.16),), background, 0.0)], 96)[0]
        close = (np.abs(image.astype(int) - rgb).max(axis=-1) <= 1).sum()
        assert close > 0.01 * 96 * 96
        assert (image[0, 0] == BACKGROUNDS[background]).all()


def test_relations_name_the_larger_distance() -> None:
    here = Shape("circle", "red", 0.5, 0.5, 0.1)
    for (x, y), where in {
        (0.1, 0.4): "left of",
        (0.9, 0.6): "right of",
        (0.4, 0.1): "above",
        (0.6, 0.9): "below",
    }.items():
        assert relation(Shape("square", "red", x, y, 0.1), here) == where


def test_plurals_follow_english_rules() -> None:
    words = "cross crosses|bus buses|fox foxes|strawberry strawberries|key keys|sheep sheep|mouse mice|potato potatoes"
    for word in words.split("|"):
        singular, plural_form = word.split()
        assert plural(singular) == plural_form
        assert plural(f"very small {singular}") == f"very small {plural_form}"


@given(st.integers(0, 1000))
def test_benchmark_prompts_match_their_metadata(seed: int) -> None:
    entries = benchmark_prompts(seed, 3)
    assert [entry["tag"] for entry in entries[::3]] == [
        "single_object",
        "two_object",
        "counting",
        "colors",
        "position",
        "color_attr",
    ]
    for entry in entries:
        for clause in entry["include"]:
            noun = clause["class"] if clause["count"] == 1 else plural(clause["class"])
            assert noun in entry["prompt"]
            assert clause.get("color", "") in entry["prompt"]
        assert entry == benchmark_prompts(seed, 3)[entries.index(entry)]
