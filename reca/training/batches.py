"""The passes of training: which samples are computed together, and reading those of the next ones meanwhile."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from reca.models.base import Loss
from reca.runtime.distributed import SINGLE_PROCESS, DistributedContext
from reca.runtime.prefetch import Prefetcher
from reca.training.loader import Samples
from reca.training.losses import Sources
from reca.training.mixture import Kind

HELD_OUT = "held_out"


@dataclass(frozen=True)
class MicroBatch:
    """A micro-batch of one loss."""

    kind: Kind
    moment: tuple[object, ...]
    """What its noise depends on beside the samples."""
    ids: Sequence[str]
    counts: bool = True
    """Whether its loss is wanted, and not only its part in gathering the parameters."""


def split_micro_batches(
    kind: Kind,
    moment: tuple[object, ...],
    ids: Sequence[str],
    size: int,
    distributed: DistributedContext = SINGLE_PROCESS,
) -> list[MicroBatch]:
    """This process's micro-batches of at most ``size`` samples.

    Sharded parameters are gathered by all processes together, so all make equally many passes then: a process that has
    fewer samples than others computes one of theirs and forgets it.
    """
    own = distributed.shard(ids)
    found = [MicroBatch(kind, moment, own[start : start + size]) for start in range(0, len(own), size)]
    if not distributed.sharded:
        return found
    most = -(-len(ids) // distributed.world_size)
    return found + [MicroBatch(kind, moment, ids[:1], counts=False)] * (-(-most // size) - len(found))


class MicroBatchLoader:
    """A run's passes, in order.

    Args:
        samples: The run's.
        size: Samples in a pass, at most.
        distributed: The processes of the run.
        steps: Steps that will be asked for, in order; nothing beyond them is read.
        ahead: Micro-batches that are read before they are due; see :class:`Prefetcher`.
    """

    def __init__(self, samples: Samples, size: int, distributed: DistributedContext, steps: range, ahead: int) -> None:
        self._samples, self._size, self._distributed = samples, size, distributed
        coming = (one for step in steps for parts in self.step(step).values() for one in parts)
        self._coming = Prefetcher(self._read, coming, ahead)

    def close(self) -> None:
        """Read no more."""
        self._coming.close()

    def step(self, step: int) -> dict[Kind, list[MicroBatch]]:
        """The passes of a step, by loss."""
        samples = self._samples.step(step)
        return {
            kind: split_micro_batches(kind, ("train", step), ids, self._size, self._distributed)
            for kind, ids in samples.items()
        }

    def held_out(self) -> dict[Kind, list[MicroBatch]]:
        """The passes over the held-out images, by loss; their noise is the same every time."""
        ids = self._samples.held_out
        return {
            kind: split_micro_batches(kind, (HELD_OUT,), ids, self._size, self._distributed)
            for kind in self._samples.held_out_kinds
        }

    def loss(self, one: MicroBatch) -> Loss:
        """The mean loss of a pass; over no targets where it does not count."""
        loss = self._samples.loss(one.kind, self._sources(one))
        return loss if one.counts else replace(loss, n_targets=0)

    def _sources(self, one: MicroBatch) -> Sources:
        if one.moment == (HELD_OUT,):
            return self._coming.load_now(one)
        due, sources = next(self._coming)
        assert due == one, "passes are computed in their order"
        return sources

    def _read(self, one: MicroBatch) -> Sources:
        return self._samples.read(one.kind, one.ids, one.moment)
