"""The GenEval rules give the original's answers."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reca.evaluation import geneval_rules as geneval

FOLDER = Path(__file__).parent / "geneval"


def load(name: str) -> Any:
    return json.loads((FOLDER / name).read_text())


@dataclass
class RecordedDetection:
    name: str
    box: list[float]
    score: float
    color: str | None = None


def colors_of(rows: Any, name: str) -> list[str]:
    return [row.color for row in rows]


def words(reason: str) -> list[str]:
    """Reasons name relations in the order of a set: compare them as words, the placeholder of none left out."""
    return sorted(re.sub(r"\band\b", " ", reason).split())


def test_relative_position() -> None:
    cases = load("relative_position.json")
    assert len(cases) > 100
    for case in cases:
        relations = geneval.relative_position(case["a"], case["b"], case["threshold"])
        assert sorted(relations) == case["relations"], case


def test_box_iou() -> None:
    for case in load("iou.json"):
        # The original computes in float32 where the boxes come from the detector.
        assert geneval.box_iou(case["a"], case["b"]) == pytest.approx(case["iou"], abs=1e-9), case


def test_clause_logic_and_reasons() -> None:
    cases = load("evaluate_logic.json")
    assert {case["correct"] for case in cases} == {True, False}
    for case in cases:
        objects = {
            name: [RecordedDetection(name, row["box"][:4], row["box"][4], row["color"]) for row in rows]
            for name, rows in case["objects"].items()
        }
        verdict = geneval.evaluate_image(objects, case["metadata"], colors_of)
        assert verdict.correct == case["correct"], case
        assert [words(reason) for reason in verdict.reasons] == [words(line) for line in case["reason_lines"]], case


def test_selection_and_verdict_of_the_whole_pipeline() -> None:
    cases = load("pipeline/cases.json")["cases"]
    for case in cases:
        options = geneval.Options(**{key: float(value) for key, value in case["options"].items()})
        rows = [RecordedDetection(d["cls"], d["row"][:4], d["row"][4]) for d in case["detections"]]
        selected = geneval.select(rows, case["metadata"]["tag"], options)
        boxes = {name: [[*row.box, row.score] for row in found] for name, found in selected.items()}
        assert boxes == case["expect"]["details"], case["image"]
        if not any("color" in clause for clause in case["metadata"]["include"]):
            assert geneval.evaluate_image(selected, case["metadata"], colors_of).correct == case["expect"]["correct"]


@pytest.mark.parametrize("name", ["small", "uneven"])
def test_summary_prints_what_the_original_prints(name: str) -> None:
    rows = [json.loads(line) for line in (FOLDER / f"summary/{name}.jsonl").read_text().splitlines()]
    summary = geneval.summarise((row["tag"], row["metadata"], row["correct"]) for row in rows)
    lines = [
        f"Total images: {len(rows)}",
        f"% correct images: {summary.images:.2%}",
        f"% correct prompts: {summary.prompts:.2%}",
        *(f"{tag:<16} = {good / n:.2%} ({good} / {n})" for tag, (good, n) in summary.tasks.items()),
        f"Overall score (avg. over tasks): {summary.overall:.5f}",
    ]
    expected = (FOLDER / f"summary/{name}.expected.txt").read_text().splitlines()
    assert [line for line in lines if line not in expected] == []


def test_published_overall_scores_follow_from_their_counts() -> None:
    for row in load("published_summaries.json")["rows"]:
        results = [
            (tag, f"{tag}{number}", number < good) for tag, (good, n) in row["counts"].items() for number in range(n)
        ]
        summary = geneval.summarise(results)
        assert summary.overall == pytest.approx(row["overall"], abs=5e-6), row["src"]
        assert 100 * summary.images == pytest.approx(row["images"], abs=0.005), row["src"]


def test_our_prompts_have_the_originals_form() -> None:
    from reca.data.synthetic.scenes import benchmark_prompts

    published = load("prompts.json")
    ours = {entry["tag"]: entry for entry in benchmark_prompts(1, 1)}
    assert list(ours) == published["tag_order"] == list(geneval.TAGS)
    for tag, theirs in published["first_of_each_tag"].items():
        assert ours[tag].keys() == theirs.keys()
        clauses = zip(ours[tag]["include"], theirs["include"], strict=True)
        assert [list(a) == list(b) for a, b in clauses] == [True] * len(theirs["include"])
        assert ours[tag]["prompt"].startswith("a photo of ")


def test_equal_scores_come_in_the_originals_order() -> None:
    rows = [RecordedDetection("a", [float(i)] * 4, 0.5) for i in range(40)]
    order = np.argsort([row.score for row in rows])[::-1][:16]
    assert [row.box[0] for row in geneval.select(rows, "colors")["a"]] == [float(i) for i in order]
