"""Loading a sharded model costs each process its share, not the model: what bench/sharding.py measures, smaller."""

from pathlib import Path

import pytest
import torch

from bench.sharding import in_processes, measure, write_model

PROCESSES, LAYERS = 4, 20
SLACK = 0.35
"""Of the whole model: for one unit in transit and what is no parameter; a whole copy would be 0.75 too much."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["as it is", "converted"])
def test_no_process_holds_more_than_its_share_in_memory_of_its_own(tmp_path: Path, dtype: torch.dtype) -> None:
    in_processes(1, write_model, tmp_path / "model", LAYERS, dtype)
    for found in in_processes(PROCESSES, measure, tmp_path / "model"):
        assert found["loading, peak"] < (1 / PROCESSES + SLACK) * found["whole"]
