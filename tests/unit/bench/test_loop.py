"""A smoke run of bench.loop: the result is consistent; its values depend on the machine."""

import json
import statistics
from pathlib import Path

from bench import loop


def test_quick_run_writes_a_result(tmp_path: Path) -> None:
    loop.main(["--quick", "--output", str(tmp_path / "loop.json")])
    answer = json.loads((tmp_path / "loop.json").read_text())
    row = answer["sizes"]["tiny"]
    # A part of the whole, and a stage without a part of it: true on any machine.
    assert all(0 <= row[f"data_wait_prefetch_{prefetch}"] <= 1 for prefetch in (0, 2))
    assert all(row[f"loop_over_bare_prefetch_{prefetch}"] > 0 for prefetch in (0, 2))
    assert len(row["all_extract_over_bare"]) == 1
    assert min(row["all_extract_over_bare"]) > 0
    assert row["extract_over_bare"] == statistics.median(row["all_extract_over_bare"])
    assert (answer["images"], answer["steps"], answer["batch_size"]) == (64, 3, 4)
