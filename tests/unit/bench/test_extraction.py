"""A smoke run of bench.extraction; values depend on the machine."""

import json
from pathlib import Path

from bench import extraction


def test_quick_run_writes_a_result(tmp_path: Path) -> None:
    extraction.main(["--quick", "--output", str(tmp_path / "answer.json")])
    answer = json.loads((tmp_path / "answer.json").read_text())
    assert answer["images"] == 4
    assert 0 < answer["over_bare"] < 3
    assert answer["images_per_second"] > 0
