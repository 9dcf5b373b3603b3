"""The passes of training: which samples are computed together, and reading those of the next ones meanwhile."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from reca.models.base import Loss
from reca.runtime.distributed import ALONE, World
from reca.runtime.prefetch import ReadAhead
from reca.training.loader import Samples
from reca.training.losses import Sources
from reca.training.mixture import Kind

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
        ahead: Passes that are read before they are due; see :class:`ReadAhead`.
    """

    def __init__(self, samples: Samples, size: int, world: World, steps: range, ahead: int) -> None:
        self._samples, self._size, self._world = samples, size, world
        coming = (one for step in steps for parts in self.step(step).values() for one in parts)
        self._coming = ReadAhead(self._read, coming, ahead)

    def close(self) -> None:
        """Read no more."""
        self._coming.close()

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
        loss = self._samples.loss(one.kind, self._sources(one))
        return loss if one.counts else replace(loss, n_targets=0)

    def _sources(self, one: Pass) -> Sources:
        if one.moment == (HELD_OUT,):
            return self._coming.aside(one)
        due, sources = next(self._coming)
        assert due == one, "passes are computed in their order"
        return sources

    def _read(self, one: Pass) -> Sources:
        return self._samples.read(one.kind, one.ids, one.moment)
