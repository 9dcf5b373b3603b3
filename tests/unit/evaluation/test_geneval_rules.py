"""Properties of GenEval's rules for every input; their exact answers are in tests/golden."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from reca.evaluation.geneval_rules import MAX_OBJECTS, evaluate_image, relative_position, select

# Whole numbers below 2^12: float32 holds them and their halves exactly, so moving a box changes nothing.
corner, side = st.integers(0, 1000), st.integers(1, 300)
boxes = st.builds(lambda x, y, w, h: (x, y, x + w, y + h), corner, corner, side, side)
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


@dataclass
class RuleDetection:
    name: str
    box: tuple[float, ...]
    score: float


scores = st.floats(0, 1, width=32)
detections = st.lists(st.builds(RuleDetection, st.sampled_from("abc"), boxes, scores), max_size=60)


@given(boxes, boxes)
def test_swapping_two_boxes_gives_the_opposite_relations(a, b):
    assert relative_position(b, a) == {OPPOSITE[relation] for relation in relative_position(a, b)}


@given(boxes, boxes, st.integers(0, 1000), st.integers(0, 1000))
def test_relations_are_invariant_to_translation(a, b, dx, dy):
    def translate(box):
        return box[0] + dx, box[1] + dy, box[2] + dx, box[3] + dy

    assert relative_position(translate(a), translate(b)) == relative_position(a, b)


@given(boxes)
def test_a_box_has_no_relation_to_itself(a):
    assert relative_position(a, a) == set()


@given(boxes, boxes)
def test_relations_never_contradict_each_other(a, b):
    relations = relative_position(a, b)
    assert not relations & {OPPOSITE[relation] for relation in relations}


@given(detections, st.sampled_from(["counting", "colors"]))
def test_selection_has_the_best_scores_above_the_threshold(candidates, tag):
    threshold = 0.9 if tag == "counting" else 0.3
    expected = {}
    for name in "abc":
        above = [detection.score for detection in candidates if detection.name == name and detection.score > threshold]
        if above:
            expected[name] = sorted(above, reverse=True)[:MAX_OBJECTS]
    selected = select(candidates, tag)
    assert {name: [detection.score for detection in group] for name, group in selected.items()} == expected
    assert all(detection.name == name for name, group in selected.items() for detection in group)


def test_selection_drops_detections_beyond_the_limit():
    candidates = [RuleDetection("a", (0, 0, 1, 1), 0.95 - 0.01 * index) for index in range(MAX_OBJECTS + 4)]
    assert select(candidates[::-1], "colors") == {"a": candidates[:MAX_OBJECTS]}


@given(detections, st.integers(1, 4))
def test_an_exclude_clause_forbids_its_count_and_more(candidates, count):
    objects = select(candidates, "colors")
    result = evaluate_image(objects, {"include": [], "exclude": [{"class": "a", "count": count}]}, lambda *_: [])
    assert result.correct == (len(objects.get("a", [])) < count)


def test_colours_are_classified_only_for_clauses_with_a_colour_and_enough_objects():
    def fail(objects, name):
        raise AssertionError("a colour was classified")

    metadata = {"include": [{"class": "a", "count": 1}, {"class": "b", "count": 1, "color": "red"}]}
    result = evaluate_image({"a": [RuleDetection("a", (0, 0, 1, 1), 1)]}, metadata, fail)
    assert result.reasons == ("expected b>=1, found 0",)


def test_every_object_of_a_clause_must_have_its_relation():
    target, right, wrong = (
        RuleDetection("x", box, 0.9) for box in ((50, 50, 60, 60), (0, 50, 10, 60), (90, 50, 99, 60))
    )
    metadata = {"include": [{"class": "t", "count": 1}, {"class": "m", "count": 2, "position": ["left of", 0]}]}
    assert evaluate_image({"t": [target], "m": [right, right]}, metadata, lambda *_: []).correct
    assert not evaluate_image({"t": [target], "m": [right, wrong]}, metadata, lambda *_: []).correct
