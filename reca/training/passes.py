"""The passes of training: which samples are computed together, and reading those of the next ones meanwhile."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

from reca.models.base import Loss
from reca.objectives.mixture import Kind
from reca.training.process import ALONE, World
from reca.training.samples import Samples, Sources

HELD_OUT = "held_out"


@dataclass(frozen=True)
class Pass:
    """A micro-batch of one loss."""

    kind: Kind
    moment: tuple[object, ...]
    """What its noise depends on beside the samples."""
    ids: Sequence[str]
    counts: bool = True
    """Whether its loss is wanted, and not only its part in gathering the parameters."""


def passes(kind: Kind, moment: tuple[object, ...], ids: Sequence[str], size: int, world: World = ALONE) -> list[Pass]:
    """This process's micro-batches of at most ``size`` samples.

    Sharded parameters are gathered by all processes together, so all make equally many passes then: a process that has
    fewer samples than others computes one of theirs and forgets it.
    """
    own = world.part(ids)
    found = [Pass(kind, moment, own[start : start + size]) for start in range(0, len(own), size)]
    if not world.sharded:
        return found
    most = -(-len(ids) // world.size)
    return found + [Pass(kind, moment, ids[:1], counts=False)] * (-(-most // size) - len(found))


class Passes:
    """A run's passes, in order.

    Args:
        samples: The run's.
        size: Samples in a pass, at most.
        world: The processes of the run.
        steps: Steps that will be asked for, in order; nothing beyond them is read.
        ahead: Passes that are read in a thread before they are due; 0: each is read when it is due.
    """

    def __init__(self, samples: Samples, size: int, world: World, steps: range, ahead: int) -> None:
        self._samples, self._size, self._world, self._ahead = samples, size, world, ahead
        # One thread reads everything, held-out samples too: what it reads from need not stand several.
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="read-ahead") if ahead else None
        self._coming: Iterator[Pass] = (one for step in steps for parts in self.step(step).values() for one in parts)
        self._read: deque[tuple[Pass, Future[Sources]]] = deque()

    def close(self) -> None:
        """Read no more."""
        if self._reader is not None:
            self._reader.shutdown(cancel_futures=True)

    def step(self, step: int) -> dict[Kind, list[Pass]]:
        """The passes of a step, by loss."""
        samples = self._samples.step(step)
        return {kind: passes(kind, ("train", step), ids, self._size, self._world) for kind, ids in samples.items()}

    def held_out(self) -> dict[Kind, list[Pass]]:
        """The passes over the held-out images, by loss; their noise is the same every time."""
        ids = self._samples.held_out
        return {kind: passes(kind, (HELD_OUT,), ids, self._size, self._world) for kind in self._samples.held_out_kinds}

    def loss(self, one: Pass) -> Loss:
        """The mean loss of a pass; over no targets where it does not count."""
        loss = self._samples.loss(one.kind, one.ids, self._sources(one))
        return loss if one.counts else replace(loss, n_targets=0)

    def _sources(self, one: Pass) -> Sources:
        if self._reader is None:
            return self._samples.read(one.kind, one.ids, one.moment)
        if one.moment == (HELD_OUT,):
            return self._submit(one).result()
        while len(self._read) <= self._ahead and (coming := next(self._coming, None)) is not None:
            self._read.append((coming, self._submit(coming)))
        due, sources = self._read.popleft()
        assert due == one, "passes are computed in their order"
        return sources.result()

    def _submit(self, one: Pass) -> Future[Sources]:
        assert self._reader is not None
        return self._reader.submit(self._samples.read, one.kind, one.ids, one.moment)
