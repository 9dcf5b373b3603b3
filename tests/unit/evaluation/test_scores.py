"""Score files are closed and add up; items survive the way to disk and back."""

import json

import pytest
from pydantic import ValidationError

from reca.evaluation.benchmark import ItemScore, Scores, read_items, read_scores, values_of, write_items
from reca.runtime.errors import UserError

VALID = {
    "benchmark": "scenes",
    "variant": "base",
    "protocol": "variant: test",
    "overall": {"value": 0.5, "low": 0.4, "high": 0.6, "n": 10},
    "categories": {
        "a": {"value": 0.25, "low": 0.1, "high": 0.4, "n": 5},
        "b": {"value": 0.75, "low": 0.6, "high": 0.9, "n": 5},
    },
    "expected": 10,
    "scored": 9,
    "failed": 1,
    "images_per_prompt": 1,
    "seed": 1,
    "settings": {},
    "checkpoint": "0" * 64,
    "judge": {"name": "exact_match", "version": "1"},
}


def test_a_valid_file_is_read_back(tmp_path):
    scores = Scores.model_validate(VALID)
    path = tmp_path / "scenes.json"
    path.write_text(scores.model_dump_json())
    assert read_scores(path) == scores


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"overall": {"value": 0.6, "low": 0.4, "high": 0.7, "n": 10}}, "not the mean of the categories"),
        ({"overall": {"value": 0.5, "low": 0.6, "high": 0.4, "n": 10}}, "upside down"),
        ({"overall": {"value": 50, "low": 40, "high": 60, "n": 10}}, "less than or equal to 1"),
        ({"overall": {"value": float("nan"), "low": 0, "high": 1, "n": 10}}, "finite"),
        ({"scored": 10}, "10 scored . 1 failed are not 10 expected"),
        ({"variant": "champion"}, "'base', 'aligned' or 'evaluated'"),
        ({"categories": {}}, "at least 1"),
        ({"official": True}, "Extra inputs"),
    ],
)
def test_what_does_not_add_up_is_refused(change, message):
    with pytest.raises(ValidationError, match=message):
        Scores.model_validate({**VALID, **change})


def test_items_survive_the_way_to_disk_and_back(tmp_path):
    items = [
        ItemScore("p0", "a", (1.0, None), ("x.png", "y.png"), ({"seen": []}, {"reasons": ["no image"]})),
        ItemScore("p1", "b", (0.25,)),
    ]
    path = tmp_path / "scenes.items.jsonl"
    write_items(path, items)
    assert read_items(path) == items
    assert values_of(items) == {"a": {"p0": [1.0]}, "b": {"p1": [0.25]}}


def test_damaged_files_are_named(tmp_path):
    path = tmp_path / "scenes.json"
    with pytest.raises(UserError, match=r"scenes\.json is missing: score the samples first"):
        read_scores(path)
    path.write_text(json.dumps(VALID)[:60])
    with pytest.raises(UserError, match=r"scenes\.json is not a valid score file"):
        read_scores(path)
    items = tmp_path / "scenes.items.jsonl"
    items.write_text('{"prompt_id": "p0"}\n')
    with pytest.raises(UserError, match=r"items\.jsonl is damaged"):
        read_items(items)
