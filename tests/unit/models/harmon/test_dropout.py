"""Dropout that asks the sample: how much, for whom, and what it must not depend on."""

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


def keys(*found: int) -> Tensor:
    return SampleRng(found).keys("dropout")


def murmur(number: int) -> int:
    """MurmurHash3's finalizer as it was published, on numbers without sign."""
    number ^= number >> 16
    number = number * 0x85EBCA6B % WORD
    number ^= number >> 13
    number = number * 0xC2B2AE35 % WORD
    return number ^ number >> 16


@given(st.lists(st.integers(0, WORD - 1), min_size=1))
def test_the_hash_is_murmurs(numbers: list[int]) -> None:
    signed = torch.tensor([number - WORD * (number >= WORD // 2) for number in numbers], dtype=torch.int32)
    assert [found % WORD for found in murmur_finalize_(signed).tolist()] == [murmur(number) for number in numbers]


@given(seeds, st.floats(0.01, 0.9), st.sampled_from([(20_000,), (100, 200), (4, 50, 100)]))
def test_of_every_sample_as_many_are_dropped_as_should_be(found: list[int], rate: float, shape: tuple[int]) -> None:
    values = torch.ones(len(found), *shape)
    result = dropout(rate)(values, keys(*found))
    dropped = (result == 0).flatten(1).double().mean(1)
    assert (dropped - rate).abs().max() < 6 * (rate * (1 - rate) / 20_000) ** 0.5
    assert torch.allclose(result[result != 0], torch.tensor(1 / (1 - rate)))


def test_what_comes_out_is_on_average_what_went_in() -> None:
    values = torch.randn(1, 50, generator=torch.Generator().manual_seed(0))
    rng = SampleRng(range(20_000))
    mean = dropout(0.1)(values.expand(20_000, -1), rng.keys("dropout")).mean(0)
    assert (mean - values[0]).abs().max() < 6 * float(values.abs().max()) * (0.1 / 0.9 / 20_000) ** 0.5


@given(seeds, st.integers(1, 9), st.integers(1, 9), st.data())
def test_neighbours_and_padding_change_nothing(found: list[int], rows: int, columns: int, data: st.DataObject) -> None:
    layer, whole = dropout(0.5), torch.ones(len(found), 12, 13)
    order = data.draw(st.permutations(range(len(found))))
    some = [found[place] for place in order[: data.draw(st.integers(1, len(found)))]]
    result = layer(torch.ones(len(some), rows, columns), keys(*some))
    assert torch.equal(result, layer(whole, keys(*found))[order[: len(some)], :rows, :columns])


def test_samples_layers_and_positions_are_dropped_independently() -> None:
    values = torch.ones(2, 40, 500)
    masks = [dropout(0.3, number)(values, keys(1, 2)).flatten(0, 1) != 0 for number in range(3)]
    related = torch.corrcoef(torch.cat(masks).float()).fill_diagonal_(0)
    assert related.abs().max() < 6 / 500**0.5
    assert not torch.equal(*(dropout(0.3)(values, SampleRng([1, 2]).keys(name)) for name in "ab"))


def test_layers_are_told_apart() -> None:
    network = nn.Sequential(SampleDropout(0.1), nn.Sequential(nn.Linear(1, 1), SampleDropout(0.1)), SampleDropout(0.1))
    number_dropout_layers(network)
    assert [module.layer_index for module in network.modules() if isinstance(module, SampleDropout)] == [0, 1, 2]


def test_without_keys_and_in_evaluation_nothing_is_dropped() -> None:
    values, layer = torch.ones(1, 1000), dropout(0.5)
    assert layer(values, None) is values
    assert layer.eval()(values, keys(1)) is values
    assert dropout(0.0)(values, keys(1)) is values


@pytest.mark.parametrize("masked", [False, True])
def test_attention_without_a_kernel_is_the_kernels(masked: bool) -> None:
    """At a rate that drops nothing, and at no other."""
    torch.manual_seed(0)
    attention, hidden = Attention(24, 3, 1e-12, 0.0), torch.randn(2, 9, 24)
    seen = torch.arange(9) < torch.tensor([[9], [4]]) if masked else None
    found, expected = attention.train()(hidden, seen, keys(1, 2)), attention.eval()(hidden, seen)
    torch.testing.assert_close(found, expected)
    attention.train().drop_weights.rate = 0.5
    assert not torch.allclose(attention(hidden, seen, keys(1, 2)), expected, atol=1e-2)


def test_hashes_have_no_numbers_where_values_have_none() -> None:
    """Of a model that is only to be sized (tools/memory) nothing large may be computed."""
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True):
        values = torch.zeros(2, 3, 4)
    assert isinstance(position_hashes(keys(1, 2), values), FakeTensor)
