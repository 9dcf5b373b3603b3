"""Rounding errors are exact, and a shard that was submitted is written even after an error."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reca.extraction.cache import FinishedShard, Rounding, metadata_path, rounding, rounding_facts, shard_path
from reca.extraction.writer import EmbeddingsWriter

ROWS = {name: ({"semantic": torch.full((2, 3), float(row)).half()}, Rounding(0.0, 0.0, 6.0 * row * row))
        for row, name in enumerate("abcd")}  # fmt: skip


@given(seed=st.integers(0, 10**6), images=st.integers(1, 4), tokens=st.integers(1, 9))
def test_rounding_is_what_numpy_finds(seed: int, images: int, tokens: int) -> None:
    exact = torch.randn(images, tokens, 5, generator=torch.Generator().manual_seed(seed))
    stored = exact.half()
    for row, results in enumerate(rounding(exact, stored).tolist()):
        values = exact[row].double().numpy()
        error = values - stored[row].double().numpy()
        np.testing.assert_allclose(results, [np.abs(error).max(), (error**2).sum(), (values**2).sum()], rtol=1e-12)


def test_rounding_does_not_depend_on_the_number_of_threads() -> None:
    exact, before = torch.randn(1, 700, 1152), torch.get_num_threads()
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(rounding(exact, exact.bfloat16()))
    torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_a_note_says_all_that_was_noted(tmp_path: Path) -> None:
    with EmbeddingsWriter(tmp_path) as writer:
        writer.write(0, ["a", "b"], ROWS)
        writer.write(1, ["c", "d"], ROWS)
    shards = [FinishedShard.load_valid(metadata_path(tmp_path, number)) for number in (0, 1)]
    assert [finished and finished.shard.ids for finished in shards] == [["a", "b"], ["c", "d"]]
    errors = [error for finished in shards if finished for error in finished.rounding]
    assert errors == [error for _, error in ROWS.values()]
    assert rounding_facts(errors) == {"max": 0.0, "relative_rms": 0.0}


def test_what_was_begun_is_kept_when_the_next_one_fails(tmp_path: Path) -> None:
    def interrupted() -> None:
        with EmbeddingsWriter(tmp_path) as writer:
            writer.write(0, ["a"], ROWS)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert FinishedShard.load_valid(metadata_path(tmp_path, 0))


def written(folder: Path, numbers: list[int]) -> None:
    with EmbeddingsWriter(folder) as writer:
        for number in numbers:
            writer.write(number, ["a"], ROWS)


def test_what_goes_wrong_is_not_lost(tmp_path: Path) -> None:
    shard_path(tmp_path, 1).mkdir()  # so no file can take its place
    for numbers in ([1], [1, 2]):
        with pytest.raises(OSError, match=r"shard-00001"):
            written(tmp_path, numbers)
    assert not metadata_path(tmp_path, 1).exists()
    assert not metadata_path(tmp_path, 2).exists()


def test_a_note_without_its_shard_counts_for_nothing(tmp_path: Path) -> None:
    with EmbeddingsWriter(tmp_path) as writer:
        writer.write(0, ["a"], ROWS)
    shard_path(tmp_path, 0).write_bytes(b"")
    assert FinishedShard.load_valid(metadata_path(tmp_path, 0)) is None
