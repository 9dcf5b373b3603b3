"""The questions about the loop are asked and answered; what the answers are depends on the machine."""

import json
from pathlib import Path

from bench import loop


def test_every_question_gets_an_answer(tmp_path: Path) -> None:
    loop.main(["--quick", "--output", str(tmp_path / "loop.json")])
    answer = json.loads((tmp_path / "loop.json").read_text())
    found = answer["sizes"]["tiny"]
    assert all(0 < found[f"data_wait_read_ahead_{ahead}"] < 1 for ahead in (0, 2))
    assert all(found[f"loop_over_bare_read_ahead_{ahead}"] > 0.3 for ahead in (0, 2))
    assert 0 < found["extract_over_bare"] < 3
    assert (answer["images"], answer["steps"], answer["batch_size"]) == (64, 3, 4)
