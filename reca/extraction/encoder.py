"""Encoding images by the frozen parts of a model."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor

from reca.data.embeddings import pin_memory, to_device
from reca.data.images import ImageReader, resize_images
from reca.extraction.cache import Rounding, Row, rounding
from reca.models.base import Images, UnifiedModel
from reca.runtime.prefetch import Prefetcher
from reca.runtime.seeding import SampleRng


@dataclass(frozen=True)
class Encoder:
    """The frozen parts of a model, applied to the images of a data set.

    An image's values depend on the image alone, up to rounding: a batch holds images of equal shape, and the last one
    is filled up, so they are bit-equal for equal ``batch_size``, device and number of threads, in any order and on any
    number of devices. Other batch sizes make libraries choose other kernels, whose sums differ in the last bits.
    """

    model: UnifiedModel
    reader: ImageReader
    device: torch.device
    batch_size: int
    dtype: torch.dtype
    """Storage type of understanding embeddings."""
    prefetch: int
    """Batches that are read and decoded ahead."""

    @torch.no_grad()
    def rows(self, ids: Sequence[str]) -> Iterator[tuple[str, Row]]:
        """Yield every image's id and row on the CPU, codes as int64; not in the order of ``ids``.

        A batch is yielded after the next one has been started, so that a GPU is busy while its rows are stored.
        """
        current: _EncodedBatch | None = None
        with Prefetcher(self._read, self._batches(ids), self.prefetch) as batches:
            for batch_ids, pixels in batches:
                previous, current = current, self._encode(batch_ids, pixels)
                if previous is not None:
                    yield from previous.rows()
        if current is not None:
            yield from current.rows()

    def _batches(self, ids: Sequence[str]) -> list[list[str]]:
        """Split ids into batches of images that are resized to one shape."""
        ids_by_shape: dict[Any, list[str]] = {}
        for name in ids:
            size = self.reader.size(name)
            shapes = self.model.spec.understanding.size(*size), self.model.spec.generation.size(*size)
            ids_by_shape.setdefault(shapes, []).append(name)
        return [
            names[start : start + self.batch_size]
            for names in ids_by_shape.values()
            for start in range(0, len(names), self.batch_size)
        ]

    def _read(self, ids: Sequence[str]) -> dict[str, Images]:
        """Return a batch's images by field, on the CPU; the last image fills up the batch."""
        images = [self.reader.load(name) for name in ids]
        images += images[-1:] * (self.batch_size - len(ids))
        spec = self.model.spec
        rules = {"semantic": spec.understanding, "target": spec.generation}
        cached_rules = {rules[field] for field in self.model.cacheable}
        resized = {rule: pin_memory(resize_images(images, rule), self.device) for rule in cached_rules}
        return {field: resized[rules[field]] for field in self.model.cacheable}

    def _encode(self, ids: Sequence[str], pixels: Mapping[str, Images]) -> "_EncodedBatch":
        """Encode a batch, without a device sync."""
        stored: dict[str, Tensor] = {}
        errors = None
        if "semantic" in pixels:
            exact = self.model.encode_semantic(to_device(pixels["semantic"], self.device)).values
            stored["semantic"] = exact.to(self.dtype)
            errors = rounding(exact, stored["semantic"])
        if "target" in pixels:
            # A single sample of a distribution, stored and used in every epoch, would be another method.
            forbidden = ForbiddenRng(
                f"{type(self.model).__name__} declares its target cacheable, but encode_target draws from rng; "
                "it must return the moments of the distribution, or not declare it"
            )
            stored["target"] = self.model.encode_target(to_device(pixels["target"], self.device), forbidden).values
        return _EncodedBatch(ids, stored, errors)


@dataclass(frozen=True)
class _EncodedBatch:
    """Values of a batch, which a GPU may still be computing."""

    ids: Sequence[str]
    stored: Mapping[str, Tensor]
    """(B, …) by field."""
    errors: Tensor | None
    """See :func:`rounding`."""

    def rows(self) -> Iterator[tuple[str, Row]]:
        """Yield the rows of ``ids`` after a device sync."""
        values = {field: tensor.cpu() for field, tensor in self.stored.items()}
        errors: list[Rounding | None] = [None] * len(self.ids)
        if self.errors is not None:
            errors = [Rounding(*error) for error in self.errors.tolist()]
        for row, name in enumerate(self.ids):
            yield name, ({field: tensor[row] for field, tensor in values.items()}, errors[row])


class ForbiddenRng(SampleRng):
    """A stream that raises on every draw: it guards code that must be deterministic."""

    def __init__(self, message: str) -> None:
        self._message = message

    def __getattr__(self, name: str) -> NoReturn:
        # Reached for the seeds and generators, which this class does not have.
        raise TypeError(self._message)
