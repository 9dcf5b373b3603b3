"""Dropout by sample keys: its rate, and independence of batch, padding and layer order."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from reca.models.harmon.dropout import SampleDropout, murmur_finalize_, number_dropout_layers, position_hashes
from reca.models.harmon.mar import Attention
from reca.runtime.seeding import SampleRng

WORD = 2**32
seeds = st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=4, unique=True)


def dropout(rate: float, number: int = 0) -> SampleDropout:
    layer = SampleDropout(rate).train()
    layer.layer_index = number
    return layer


def keys(*seeds: int) -> Tensor:
    return SampleRng(seeds).keys("dropout")


def murmur(number: int) -> int:
    """MurmurHash3's finalizer as it was published, on numbers without sign."""
    number ^= number >> 16
    number = number * 0x85EBCA6B % WORD
    number ^= number >> 13
    number = number * 0xC2B2AE35 % WORD
    return number ^ number >> 16


@given(st.lists(st.integers(0, WORD - 1), min_size=1))
def test_hash_is_murmur3(numbers: list[int]) -> None:
    signed = torch.tensor([number - WORD * (number >= WORD // 2) for number in numbers], dtype=torch.int32)
    assert [number % WORD for number in murmur_finalize_(signed).tolist()] == [murmur(number) for number in numbers]


@given(seeds, st.floats(0.01, 0.9), st.sampled_from([(20_000,), (100, 200), (4, 50, 100)]))
def test_dropped_share_is_the_rate(ids: list[int], rate: float, shape: tuple[int]) -> None:
    values = torch.ones(len(ids), *shape)
    result = dropout(rate)(values, keys(*ids))
    dropped = (result == 0).flatten(1).double().mean(1)
    assert (dropped - rate).abs().max() < 6 * (rate * (1 - rate) / 20_000) ** 0.5
    assert torch.allclose(result[result != 0], torch.tensor(1 / (1 - rate)))


def test_dropout_keeps_the_mean() -> None:
    values = torch.randn(1, 50, generator=torch.Generator().manual_seed(0))
    rng = SampleRng(range(20_000))
    mean = dropout(0.1)(values.expand(20_000, -1), rng.keys("dropout")).mean(0)
    assert (mean - values[0]).abs().max() < 6 * float(values.abs().max()) * (0.1 / 0.9 / 20_000) ** 0.5


@given(seeds, st.integers(1, 9), st.integers(1, 9), st.data())
def test_masks_do_not_depend_on_batch_or_padding(ids: list[int], rows: int, columns: int, data: st.DataObject) -> None:
    layer, values = dropout(0.5), torch.ones(len(ids), 12, 13)
    order = data.draw(st.permutations(range(len(ids))))
    subset = [ids[index] for index in order[: data.draw(st.integers(1, len(ids)))]]
    result = layer(torch.ones(len(subset), rows, columns), keys(*subset))
    assert torch.equal(result, layer(values, keys(*ids))[order[: len(subset)], :rows, :columns])


def test_samples_layers_and_positions_are_dropped_independently() -> None:
    values = torch.ones(2, 40, 500)
    masks = [dropout(0.3, number)(values, keys(1, 2)).flatten(0, 1) != 0 for number in range(3)]
    related = torch.corrcoef(torch.cat(masks).float()).fill_diagonal_(0)
    assert related.abs().max() < 6 / 500**0.5
    assert not torch.equal(*(dropout(0.3)(values, SampleRng([1, 2]).keys(name)) for name in "ab"))


def test_dropout_layers_are_numbered() -> None:
    network = nn.Sequential(SampleDropout(0.1), nn.Sequential(nn.Linear(1, 1), SampleDropout(0.1)), SampleDropout(0.1))
    number_dropout_layers(network)
    assert [module.layer_index for module in network.modules() if isinstance(module, SampleDropout)] == [0, 1, 2]


def test_dropout_is_off_without_keys_and_in_evaluation() -> None:
    values, layer = torch.ones(1, 1000), dropout(0.5)
    assert layer(values, None) is values
    assert layer.eval()(values, keys(1)) is values
    assert dropout(0.0)(values, keys(1)) is values


@pytest.mark.parametrize("masked", [False, True])
def test_manual_attention_equals_the_fused_kernel(masked: bool) -> None:
    """At a rate close to zero; at 0.5 the outputs differ."""
    torch.manual_seed(0)
    attention, hidden = Attention(24, 3, 1e-12, 0.0), torch.randn(2, 9, 24)
    mask = torch.arange(9) < torch.tensor([[9], [4]]) if masked else None
    manual, expected = attention.train()(hidden, mask, keys(1, 2)), attention.eval()(hidden, mask)
    torch.testing.assert_close(manual, expected)
    attention.train().drop_weights.rate = 0.5
    assert not torch.allclose(attention(hidden, mask, keys(1, 2)), expected, atol=1e-2)


def test_hashes_of_fake_tensors_are_fake() -> None:
    """Memory prediction (tools/memory) must not allocate masks."""
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True):
        values = torch.zeros(2, 3, 4)
    assert isinstance(position_hashes(keys(1, 2), values), FakeTensor)
