"""GenEval's prompts and rules, beyond the recorded cases that the replays compare."""

import json
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from reca.data.synthetic.scenes import benchmark_prompts
from reca.evaluation import geneval_rules as geneval
from tests.golden.geneval_options import box_iou, select
from tests.golden.replays.geneval import RecordedDetection

FOLDER = Path(__file__).parent / "geneval"


def test_scene_prompts_have_the_originals_form() -> None:
    published = json.loads((FOLDER / "prompts.json").read_text())
    ours = {entry["tag"]: entry for entry in benchmark_prompts(1, 1)}
    assert list(ours) == published["tag_order"] == list(geneval.TAGS)
    for tag, original in published["first_of_each_tag"].items():
        assert ours[tag].keys() == original.keys()
        clauses = zip(ours[tag]["include"], original["include"], strict=True)
        assert [list(a) == list(b) for a, b in clauses] == [True] * len(original["include"])
        assert ours[tag]["prompt"].startswith("a photo of ")


def test_equal_scores_come_in_the_originals_order() -> None:
    rows = [RecordedDetection("a", [float(i)] * 4, 0.5) for i in range(40)]
    order = np.argsort([row.score for row in rows])[::-1][:16]
    assert [row.box[0] for row in geneval.select(rows, "colors")["a"]] == [float(i) for i in order]


corner, side = st.integers(0, 30), st.integers(1, 30)
boxes = st.builds(lambda x, y, w, h: (x, y, x + w, y + h), corner, corner, side, side)
scores = st.floats(0.375, 1, width=32)


@given(boxes, boxes)
def test_overlap_is_symmetric_and_a_fraction(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    assert 0 <= box_iou(a, b) == box_iou(b, a) <= 1
    assert box_iou(a, a) == 1


@given(st.lists(st.builds(RecordedDetection, st.just("a"), boxes, scores), min_size=1, max_size=16))
def test_overlap_limit_keeps_the_best_of_each_cluster(detections: list[RecordedDetection]) -> None:
    best = select(detections, "colors", max_overlap=0.5)["a"]
    assert best[0].score == max(detection.score for detection in detections)
    for index, detection in enumerate(best):
        assert all(box_iou(better.box, detection.box) < 0.5 for better in best[:index])
    for detection in detections:
        if not any(detection is other for other in best):
            assert any(b.score >= detection.score and box_iou(b.box, detection.box) >= 0.5 for b in best)


def test_overlap_limit_drops_the_worse_of_two_and_keeps_distant_boxes() -> None:
    rows = [("a", [0, 0, 9, 9], 0.5), ("a", [0, 0, 9, 8], 0.6), ("a", [50, 50, 59, 59], 0.4), ("b", [0, 0, 9, 9], 0.4)]
    selected = select([RecordedDetection(*row) for row in rows], "colors", max_overlap=0.5)
    assert {name: [row.score for row in group] for name, group in selected.items()} == {"a": [0.6, 0.4], "b": [0.4]}
