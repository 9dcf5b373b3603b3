"""Extraction is measured against its encoders; what the answer is depends on the machine."""

import json
from pathlib import Path

from bench import extraction


def test_the_question_gets_an_answer(tmp_path: Path) -> None:
    extraction.main(["--quick", "--output", str(tmp_path / "answer.json")])
    answer = json.loads((tmp_path / "answer.json").read_text())
    assert answer["images"] == 4
    assert 0 < answer["over_bare"] < 3
    assert answer["images_per_second"] > 0
