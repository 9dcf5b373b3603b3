"""The frozen parts of a model at work: what is stored of each image."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from reca.data.images import resize_images
from reca.data.packed import pin_memory, to_device
from reca.extraction.cache import Rounding, Row, rounding
from reca.models.base import Images, UnifiedModel
from reca.runtime.prefetch import Prefetcher
from reca.runtime.seeding import ForbiddenRng


class Reader(Protocol):
    """What :class:`reca.data.manifest.ImageReader` does here; for several threads at once."""

    def size(self, image_id: str, /) -> tuple[int, int]:
        """Height and width of the image in pixels."""

    def load(self, image_id: str, /) -> Image.Image:
        """The image, upright RGB."""


@dataclass(frozen=True)
class Encoder:
    """The frozen parts of a model at work on a data set's images.

    An image's values depend on the image and the batch size alone: neither on its neighbours nor on its place, because
    batches hold images of one shape, and the last one is filled up. Other sizes make libraries choose other kernels,
    whose sums differ in the last bits.
    """

    model: UnifiedModel
    reader: Reader
    device: torch.device
    batch_size: int
    dtype: torch.dtype
    """Of understanding embeddings when they are stored."""
    prefetch: int
    """Batches that are read and decoded while earlier ones are encoded."""

    @torch.no_grad()
    def rows(self, ids: Sequence[str]) -> Iterator[tuple[str, Row]]:
        """Each image with what is stored of it, on the CPU; codes are int64 still. Not in the order of ``ids``.

        A batch is handed out when the next one has been started, so that a GPU works on while its rows are stored.
        """
        started: _Started | None = None
        with Prefetcher(self._read, self._batches(ids), self.prefetch) as coming:
            for chosen, pixels in coming:
                before, started = started, self._start(chosen, pixels)
                if before is not None:
                    yield from before.rows()
        if started is not None:
            yield from started.rows()

    def _batches(self, ids: Sequence[str]) -> list[list[str]]:
        """Of images that end in one shape."""
        alike: dict[Any, list[str]] = {}
        for name in ids:
            size = self.reader.size(name)
            shapes = self.model.spec.understanding.size(*size), self.model.spec.generation.size(*size)
            alike.setdefault(shapes, []).append(name)
        return [
            names[start : start + self.batch_size]
            for names in alike.values()
            for start in range(0, len(names), self.batch_size)
        ]

    def _read(self, ids: Sequence[str]) -> dict[str, Images]:
        """A batch's images by field, on the CPU; the last one stands in for those that are missing."""
        images = [self.reader.load(name) for name in ids]
        images += images[-1:] * (self.batch_size - len(ids))
        spec = self.model.spec
        wanted = {"semantic": spec.understanding, "target": spec.generation}
        rules = {wanted[field] for field in self.model.cacheable}
        made = {rule: pin_memory(resize_images(images, rule), self.device) for rule in rules}
        return {field: made[wanted[field]] for field in self.model.cacheable}

    def _start(self, ids: Sequence[str], pixels: Mapping[str, Images]) -> "_Started":
        """Encode a batch; a GPU need not have finished when this returns."""
        stored: dict[str, Tensor] = {}
        costs = None
        if "semantic" in pixels:
            exact = self.model.encode_semantic(to_device(pixels["semantic"], self.device)).values
            stored["semantic"] = exact.to(self.dtype)
            costs = rounding(exact, stored["semantic"])
        if "target" in pixels:
            # A sample of a distribution, stored once and used for ever, would be another method.
            forbidden = ForbiddenRng(
                f"{type(self.model).__name__} declares its target cacheable, but encode_target draws from rng; "
                "it must return the moments of the distribution, or not declare it"
            )
            stored["target"] = self.model.encode_target(to_device(pixels["target"], self.device), forbidden).values
        return _Started(ids, stored, costs)


@dataclass(frozen=True)
class _Started:
    """A batch on its way through the encoders."""

    ids: Sequence[str]
    stored: Mapping[str, Tensor]
    """(B, …) by field: a batch's images are of one shape."""
    costs: Tensor | None
    """See :func:`rounding`."""

    def rows(self) -> Iterator[tuple[str, Row]]:
        """Wait for the device; what was filled in is left out."""
        values = {field: found.cpu() for field, found in self.stored.items()}
        costs = [None] * len(self.ids) if self.costs is None else [Rounding(*cost) for cost in self.costs.tolist()]
        for row, name in enumerate(self.ids):
            yield name, ({field: found[row] for field, found in values.items()}, costs[row])
