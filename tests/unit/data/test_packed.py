"""Packing of tensors of different shapes."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from reca.data.packed import PackedTensor, map_tensors, pack, unpack
from reca.runtime.seeding import SampleRng

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
