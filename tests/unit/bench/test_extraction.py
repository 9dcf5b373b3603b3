"""A smoke run of bench.extraction: the result is consistent; its values depend on the machine."""

import json
import statistics
from pathlib import Path

from bench import extraction


def test_quick_run_writes_a_result(tmp_path: Path) -> None:
    extraction.main(["--quick", "--output", str(tmp_path / "answer.json")])
    answer = json.loads((tmp_path / "answer.json").read_text())
    assert answer["images"] == 4
    assert len(answer["all_over_bare"]) == 1
    assert answer["over_bare"] == statistics.median(answer["all_over_bare"]) > 0
    assert answer["images_per_second"] > 0
