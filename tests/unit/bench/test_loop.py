"""A smoke run of bench.loop; values depend on the machine."""

import json
from pathlib import Path

from bench import loop


def test_quick_run_writes_a_result(tmp_path: Path) -> None:
    loop.main(["--quick", "--output", str(tmp_path / "loop.json")])
    answer = json.loads((tmp_path / "loop.json").read_text())
    row = answer["sizes"]["tiny"]
    assert all(0 < row[f"data_wait_prefetch_{prefetch}"] < 1 for prefetch in (0, 2))
    assert all(row[f"loop_over_bare_prefetch_{prefetch}"] > 0.3 for prefetch in (0, 2))
    assert 0 < row["extract_over_bare"] < 3
    assert (answer["images"], answer["steps"], answer["batch_size"]) == (64, 3, 4)
