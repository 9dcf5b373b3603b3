"""Read what is needed next while the present is computed."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, Self, TypeVar

Item = TypeVar("Item")
Value = TypeVar("Value")


class Prefetcher(Generic[Item, Value]):
    """Iterates over items and what is read of each, in order; use it in a ``with`` block, or close it.

    As many threads read as there are items ahead, so that decoding an image on one core need not be faster than all
    that is computed from it. What goes wrong in reading is raised where the item is due.

    Args:
        read: What an item stands for; called by several threads at once.
        items: In the order in which they will be asked for; looked at no earlier than they are read.
        number: Items that are read before they are due; 0: each is read when it is due, without a thread.
    """

    def __init__(self, read: Callable[[Item], Value], items: Iterable[Item], number: int) -> None:
        self._read, self._items, self._number = read, iter(items), number
        self._threads = ThreadPoolExecutor(number, thread_name_prefix="read-ahead") if number else None
        self._coming: deque[tuple[Item, Future[Value]]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Read no more."""
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)

    def __iter__(self) -> Iterator[tuple[Item, Value]]:
        return self

    def __next__(self) -> tuple[Item, Value]:
        if self._threads is None:
            item = next(self._items)
            return item, self._read(item)
        for item in self._items:
            self._coming.append((item, self._threads.submit(self._read, item)))
            if len(self._coming) > self._number:
                break
        if not self._coming:
            raise StopIteration
        due, value = self._coming.popleft()
        return due, value.result()

    def load_now(self, item: Item) -> Value:
        """What is read of an item that is not one of those to come, behind those that are being read."""
        return self._read(item) if self._threads is None else self._threads.submit(self._read, item).result()
