"""Properties that GenEval's rules have for every input (their exact answers are in tests/golden)."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from reca.evaluation.geneval_rules import Options, box_iou, evaluate_image, relative_position, select

# Whole numbers below 2^12: float32 holds them and their halves exactly, so moving a box changes nothing.
corner, side = st.integers(0, 1000), st.integers(1, 300)
boxes = st.builds(lambda x, y, w, h: (x, y, x + w, y + h), corner, corner, side, side)
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


@dataclass
class Found:
    name: str
    box: tuple[float, ...]
    score: float


detections = st.lists(st.builds(Found, st.sampled_from("abc"), boxes, st.floats(0, 1, width=32)), max_size=30)


@given(boxes, boxes)
def test_swapping_two_boxes_gives_the_opposite_relations(a, b):
    assert relative_position(b, a) == {OPPOSITE[relation] for relation in relative_position(a, b)}


@given(boxes, boxes, st.integers(0, 1000), st.integers(0, 1000))
def test_relations_do_not_depend_on_where_the_pair_stands(a, b, dx, dy):
    def moved(box):
        return box[0] + dx, box[1] + dy, box[2] + dx, box[3] + dy

    assert relative_position(moved(a), moved(b)) == relative_position(a, b)


@given(boxes)
def test_nothing_stands_beside_itself(a):
    assert relative_position(a, a) == set()


@given(boxes, boxes)
def test_relations_never_contradict_each_other(a, b):
    relations = relative_position(a, b)
    assert not relations & {OPPOSITE[relation] for relation in relations}


@given(boxes, boxes)
def test_overlap_is_symmetric_and_a_fraction(a, b):
    assert 0 <= box_iou(a, b) == box_iou(b, a) <= 1
    assert box_iou(a, a) == 1


@given(detections, st.sampled_from(["counting", "colors"]))
def test_selection_is_strict_limited_and_ordered(found, tag):
    threshold = 0.9 if tag == "counting" else 0.3
    for name, kept in select(found, tag, Options(max_objects=3)).items():
        scores = [detection.score for detection in kept]
        assert all(detection.name == name for detection in kept)
        assert all(score > threshold for score in scores)
        assert scores == sorted(scores, reverse=True)
        assert 0 < len(kept) <= 3


@given(detections)
def test_overlap_limit_keeps_the_best_of_each_cluster(found):
    for kept in select(found, "colors", Options(max_overlap=0.5)).values():
        assert all(box_iou(a.box, b.box) < 0.5 for i, a in enumerate(kept) for b in kept[:i])


@given(detections, st.integers(1, 4))
def test_an_exclude_clause_forbids_its_count_and_more(found, count):
    objects = select(found, "colors")
    verdict = evaluate_image(objects, {"include": [], "exclude": [{"class": "a", "count": count}]}, lambda *_: [])
    assert verdict.correct == (len(objects.get("a", [])) < count)


def test_colours_are_asked_only_where_a_clause_names_one():
    def nobody_asks(found, name):
        raise AssertionError("asked for a colour")

    metadata = {"include": [{"class": "a", "count": 1}, {"class": "b", "count": 1, "color": "red"}]}
    assert not evaluate_image({"a": [Found("a", (0, 0, 1, 1), 1)]}, metadata, nobody_asks).correct


def test_every_found_object_must_stand_right():
    target, right, wrong = (Found("x", box, 0.9) for box in ((50, 50, 60, 60), (0, 50, 10, 60), (90, 50, 99, 60)))
    metadata = {"include": [{"class": "t", "count": 1}, {"class": "m", "count": 2, "position": ["left of", 0]}]}
    assert evaluate_image({"t": [target], "m": [right, right]}, metadata, lambda *_: []).correct
    assert not evaluate_image({"t": [target], "m": [right, wrong]}, metadata, lambda *_: []).correct
