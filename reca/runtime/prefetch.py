"""Reading inputs on threads while earlier ones are processed."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, Self, TypeVar

Item = TypeVar("Item")
Value = TypeVar("Value")


class Prefetcher(Generic[Item, Value]):
    """Iterator over (item, its loaded value) in order; use it in a ``with`` block, or close it.

    There are as many threads as prefetched items, so that decoding on one core need not keep up with the consumer. An
    error in loading is raised when its item is returned.

    Args:
        load: Function from an item to its value; called by several threads at once.
        items: In the order of iteration; advanced only when an item is about to be loaded.
        prefetch: Items that are loaded ahead; 0: each is loaded on demand, without a thread.
    """

    def __init__(self, load: Callable[[Item], Value], items: Iterable[Item], prefetch: int) -> None:
        self._load, self._items, self._prefetch = load, iter(items), prefetch
        self._threads = ThreadPoolExecutor(prefetch, thread_name_prefix="prefetch") if prefetch else None
        self._queue: deque[tuple[Item, Future[Value]]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop loading."""
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)

    def __iter__(self) -> Iterator[tuple[Item, Value]]:
        return self

    def __next__(self) -> tuple[Item, Value]:
        if self._threads is None:
            item = next(self._items)
            return item, self._load(item)
        for item in self._items:
            self._queue.append((item, self._threads.submit(self._load, item)))
            if len(self._queue) > self._prefetch:
                break
        if not self._queue:
            raise StopIteration
        item, future = self._queue.popleft()
        return item, future.result()

    def load_now(self, item: Item) -> Value:
        """Load an item outside the iteration, after those that are being loaded."""
        return self._load(item) if self._threads is None else self._threads.submit(self._load, item).result()
