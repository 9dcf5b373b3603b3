"""The extract cache: reading, detection of damage, packing of different shapes."""

import json
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from reca.data.embeddings import (
    INDEX,
    Embeddings,
    EmbeddingsError,
    Field,
    PackedTensor,
    map_tensors,
    pack,
    unpack,
)
from reca.extraction.writer import to_smallest_int, write_index, write_shard
from reca.runtime.seeding import SampleRng


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    shards = []
    for number in range(3):
        fields = {
            "semantic": torch.randn(4, 5, 6, generator=generator).bfloat16(),
            "target": to_smallest_int(torch.randint(0, 1000, (4, 9), generator=generator)),
        }
        names = [f"image-{number}-{row}" for row in range(4)]
        shards.append(write_shard(tmp_path / f"shard-{number:05d}.safetensors", names, fields))
    fields = {"semantic": Field([5, 6], "bfloat16"), "target": Field([9], "int16")}
    write_index(tmp_path, shards, fields, error={"max": 0.01})
    return tmp_path


def test_rows_follow_the_order_of_ids(cache: Path) -> None:
    embeddings = Embeddings.open(cache)
    assert len(embeddings.ids) == 12
    assert embeddings.error == {"max": 0.01}
    ids = ["image-2-3", "image-0-1", "image-2-3", "image-1-0"]
    semantic, target = (torch.stack(embeddings.rows(field, ids)) for field in ("semantic", "target"))
    assert semantic.shape == (4, 5, 6)
    assert semantic.dtype == torch.float32
    assert target.dtype == torch.int64
    assert torch.equal(semantic[0], semantic[2])
    assert torch.equal(target[1], embeddings.rows("target", ["image-0-1"])[0])
    assert not torch.equal(semantic[0], semantic[1])


def test_values_round_trip(tmp_path: Path) -> None:
    values = {"semantic": torch.randn(2, 3, 4), "target": torch.tensor([[0, 32767], [5, 6]]).to(torch.int16)}
    shard = write_shard(tmp_path / "shard-00000.safetensors", ["a", "b"], values)
    write_index(tmp_path, [shard], {"semantic": Field([3, 4], "float32"), "target": Field([2], "int16")})
    embeddings = Embeddings.open(tmp_path)
    assert torch.equal(torch.stack(embeddings.rows("semantic", ["b", "a"])), values["semantic"].flip(0))
    assert torch.equal(embeddings.rows("target", ["a"])[0], torch.tensor([0, 32767]))


def test_reading_maps_the_file_into_memory(tmp_path: Path) -> None:
    """Reading one row of a 64 MiB shard takes less than 16 MiB."""
    shard = write_shard(tmp_path / "shard-00000.safetensors", ["a", "b"], {"semantic": torch.zeros(2, 8, 2**20)})
    write_index(tmp_path, [shard], {"semantic": Field([8, 2**20], "float32")})
    embeddings = Embeddings.open(tmp_path)
    before = _private_memory_mib()
    tensor = embeddings._open(0, "semantic")[1]
    assert tensor.shape == (8, 2**20)
    assert _private_memory_mib() - before < 16


def _private_memory_mib() -> float:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Dirty", "Private_Clean"))) / 1024


def test_missing_index_is_an_error(cache: Path) -> None:
    (cache / INDEX).unlink()
    with pytest.raises(EmbeddingsError, match=r"index\.json is missing.*reca extract"):
        Embeddings.open(cache)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}', '{"format": 99}'])
def test_unreadable_index_is_an_error(cache: Path, text: str) -> None:
    (cache / INDEX).write_text(text)
    with pytest.raises(EmbeddingsError, match=r"index\.json.*reca extract"):
        Embeddings.open(cache)


def test_half_written_shard_is_an_error(cache: Path) -> None:
    path = cache / "shard-00001.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(EmbeddingsError, match=r"shard-00001\.safetensors has \d+ bytes instead of \d+.*reca extract"):
        Embeddings.open(cache)


def test_flipped_bit_is_an_error(cache: Path) -> None:
    path = cache / "shard-00002.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(EmbeddingsError, match=r"shard-00002\.safetensors is damaged.*reca extract"):
        Embeddings.open(cache)


def test_missing_shard_is_an_error(cache: Path) -> None:
    (cache / "shard-00000.safetensors").unlink()
    with pytest.raises(EmbeddingsError, match=r"shard-00000\.safetensors is missing.*reca extract"):
        Embeddings.open(cache)


def test_shard_without_an_indexed_field_is_an_error(cache: Path) -> None:
    index = json.loads((cache / INDEX).read_text())
    index["fields"]["moments"] = {"shape": [2], "dtype": "float32"}
    (cache / INDEX).write_text(json.dumps(index))
    with pytest.raises(EmbeddingsError, match="moments"):
        Embeddings.open(cache).rows("moments", ["image-0-0"])


def test_unknown_image_and_field_are_errors(cache: Path) -> None:
    embeddings = Embeddings.open(cache)
    with pytest.raises(EmbeddingsError, match="image stranger"):
        embeddings.rows("semantic", ["stranger"])
    with pytest.raises(EmbeddingsError, match="no field 'moments', only semantic, target"):
        embeddings.rows("moments", ["image-0-0"])


def test_codes_use_the_smallest_integer_type() -> None:
    assert {row.dtype for row in to_smallest_int(torch.tensor([[0, 1], [0, 32767]]))} == {torch.int16}
    assert {row.dtype for row in to_smallest_int(torch.tensor([[0, 1], [0, 32768]]))} == {torch.int32}


SHAPE = st.tuples(st.integers(1, 3), st.integers(1, 4))


@given(shapes=st.lists(SHAPE, min_size=1, max_size=6), seed=st.integers(0, 2**32 - 1))
def test_rows_of_any_shapes_round_trip(shapes: list[tuple[int, int]], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randn(2, *shape, generator=generator) for shape in shapes]
    ids = [str(number) for number in range(len(rows))]
    with tempfile.TemporaryDirectory() as name:
        shard = write_shard(Path(name) / "shard-00000.safetensors", ids, {"target": rows})
        same = [2, *shapes[0]] if len(set(shapes)) == 1 else None
        write_index(Path(name), [shard], {"target": Field(same, "float32")})
        assert json.loads((Path(name) / INDEX).read_text())["format"] == (1 if same else 2)
        loaded = Embeddings.open(Path(name)).rows("target", ids[::-1])
        assert all(map(torch.equal, loaded, rows[::-1]))


SHAPES = st.lists(st.lists(st.integers(1, 4), min_size=2, max_size=3).map(tuple), min_size=1, max_size=5)


@given(shapes=SHAPES)
def test_unpack_undoes_pack(shapes: list[tuple[int, ...]]) -> None:
    rows = [torch.randn(shape, requires_grad=True) for shape in shapes]
    values, packed_shapes = pack(rows)
    assert (packed_shapes is None) == (len(set(shapes)) == 1)
    parts = unpack(values, packed_shapes)
    assert all(map(torch.equal, parts, rows))
    sum((number + 1) * part.sum() for number, part in enumerate(parts)).backward()
    assert all(bool((row.grad == number + 1).all()) for number, row in enumerate(rows))


@given(shapes=SHAPES)
def test_noise_of_a_sample_does_not_depend_on_its_batch(shapes: list[tuple[int, ...]]) -> None:
    together = SampleRng(range(len(shapes))).normals("noise", shapes)
    separate = [SampleRng([seed]).normal("noise", shape)[0] for seed, shape in enumerate(shapes)]
    assert all(map(torch.equal, together, separate))


@given(shapes=SHAPES)
def test_map_tensors_applies_to_every_kind_of_batch(shapes: list[tuple[int, ...]]) -> None:
    rows = [torch.randn(shape) for shape in shapes]
    batch = PackedTensor.from_rows(rows)
    assert all(map(torch.equal, map_tensors(batch, Tensor.neg).rows(), [-row for row in rows]))
    assert all(map(torch.equal, map_tensors(rows, Tensor.neg), [-row for row in rows]))
    assert torch.equal(map_tensors(batch.values, Tensor.neg), -batch.values)
