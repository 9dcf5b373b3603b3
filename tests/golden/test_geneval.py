"""GenEval's prompts and rules, beyond the recorded cases that the replays compare."""

import json
from pathlib import Path

import numpy as np

from reca.data.synthetic.scenes import benchmark_prompts
from reca.evaluation import geneval_rules as geneval
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
