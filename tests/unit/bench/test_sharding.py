"""Memory of loading a sharded model, as bench/sharding.py measures it, with a smaller model."""

from pathlib import Path

import pytest
import torch

from bench.sharding import measure, run_ranks, write_model

PROCESSES, LAYERS = 2, 12
SLACK = 0.3
"""Share of the model for a unit in transit and other tensors; a full copy would exceed it by 0.2."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_ranks_load_only_their_shard(tmp_path: Path, dtype: torch.dtype) -> None:
    run_ranks(1, write_model, tmp_path / "model", LAYERS, dtype)
    for memory in run_ranks(PROCESSES, measure, tmp_path / "model"):
        assert memory["loading, peak"] < (1 / PROCESSES + SLACK) * memory["whole"]
