"""Prefetched values equal those loaded on demand, and no more than ``prefetch`` items are loaded ahead."""

import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reca.runtime.prefetch import Prefetcher


@given(items=st.lists(st.integers(), max_size=12), number=st.integers(0, 5))
def test_every_item_comes_in_its_order_and_not_too_early(items: list[int], number: int) -> None:
    supplied: list[int] = []

    def supply():
        for item in items:
            supplied.append(item)
            yield item

    with Prefetcher(lambda item: item * 2, supply(), number) as prefetcher:
        for index, (item, value) in enumerate(prefetcher):
            assert (item, value) == (items[index], items[index] * 2)
            assert len(supplied) == min(index + 1 + number, len(items))
    assert supplied == items


@pytest.mark.parametrize("number", [0, 3])
def test_what_is_not_in_turn_comes_when_it_is_asked_for(number: int) -> None:
    with Prefetcher(lambda item: (item, threading.get_ident()), "abcdef", number) as prefetcher:
        threads = {thread for _, (_, thread) in (next(prefetcher), next(prefetcher))}
        value, thread = prefetcher.load_now("x")
        threads.add(thread)
        assert value == "x"
        assert [item for item, _ in prefetcher] == list("cdef")
    assert (threads == {threading.get_ident()}) == (number == 0)


def test_as_many_threads_read_as_there_are_items_ahead() -> None:
    gate = threading.Barrier(3, timeout=60)  # opens when three wait at it

    def read(item: int) -> int:
        gate.wait()
        return item

    with Prefetcher(read, range(9), 3) as prefetcher:
        assert [value for _, value in prefetcher] == list(range(9))


def test_what_is_closed_reads_no_more() -> None:
    begun, done, gate = list[str](), list[str](), threading.Event()

    def read(item: str) -> str:
        begun.append(item)
        if item != "a":
            gate.wait(60)
        done.append(item)
        return item

    prefetcher = Prefetcher(read, "abcdefgh", 2)
    assert next(prefetcher) == ("a", "a")
    until = time.monotonic() + 60
    while len(begun) < 3 and time.monotonic() < until:
        time.sleep(0.001)
    closing = threading.Thread(target=prefetcher.close)
    closing.start()
    closing.join(0.05)
    assert closing.is_alive()  # waits for the loads that have begun
    gate.set()
    closing.join()
    assert sorted(done) == ["a", "b", "c"]


def test_what_goes_wrong_is_raised_where_it_is_due() -> None:
    def read(item: int) -> int:
        if item == 2:
            raise OSError("shard 2 is damaged")
        return item

    with Prefetcher(read, range(5), 3) as prefetcher:
        assert [next(prefetcher)[0] for _ in range(2)] == [0, 1]
        with pytest.raises(OSError, match="shard 2"):
            next(prefetcher)
