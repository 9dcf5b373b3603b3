"""The order of samples: a pure function of (seed, stream, step), so a resumed run needs no saved sampler state."""

from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from reca.runtime.seeding import derive_seed

EPOCHS_IN_MEMORY = 2  # a batch may straddle two epochs


class EpochSampler:
    """An endless stream of ids: every epoch is a new permutation of all ids.

    The order depends on the set of ids, the seed and the stream's name; not on the order in which the ids are
    given, nor on the world size: every rank computes the whole step and takes its shard.

    Args:
        ids: Distinct names of the samples.
        seed: The run's seed.
        stream: Name of the stream; streams with the same seed are independent.

    Raises:
        ValueError: There are no ids, or an id occurs twice.
    """

    def __init__(self, ids: Iterable[str], seed: int, stream: str) -> None:
        self._ids: Sequence[str] = sorted(ids)
        if not self._ids:
            raise ValueError(f"the stream {stream!r} has no samples to draw from")
        if len(set(self._ids)) < len(self._ids):
            raise ValueError(f"the stream {stream!r} was given an id twice")
        self._seed, self._stream = seed, stream
        self._order = lru_cache(EPOCHS_IN_MEMORY)(self._permutation)

    def __len__(self) -> int:
        return len(self._ids)

    def step(self, step: int, size: int) -> list[str]:
        """Return the ``size`` ids of a step; steps count from 1."""
        return self.take((step - 1) * size, size)

    def take(self, start: int, count: int) -> list[str]:
        """Return elements ``start`` to ``start + count`` of the stream."""
        return [self._at(position) for position in range(start, start + count)]

    def _at(self, position: int) -> str:
        epoch, index = divmod(position, len(self._ids))
        return self._ids[self._order(epoch)[index]]

    def _permutation(self, epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng(derive_seed(self._seed, self._stream, epoch)).permutation(len(self._ids))
