"""The frozen parts of a model at work: what is stored of each image."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from reca.data.images import resized
from reca.data.manifest import ImageReader
from reca.models.base import Images, UnifiedModel
from reca.nn.ragged import moved
from reca.nn.random import SampleRng, derive_seed
from reca.training.read_ahead import ReadAhead


@dataclass(frozen=True)
class Encoder:
    """The frozen parts of a model at work on a data set's images.

    An image's values depend on the image and the batch size alone: neither on its neighbours nor on its place, because
    batches hold images of one shape, and the last one is filled up. Other sizes make libraries choose other kernels,
    whose sums differ in the last bits.
    """

    model: UnifiedModel
    reader: ImageReader
    device: torch.device
    batch_size: int
    read_ahead: int = 0
    """Batches that are read and decoded while earlier ones are encoded."""

    @torch.no_grad()
    def rows(self, ids: Sequence[str]) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Each image with its values by field, float32 or int64, on the CPU; not in the order of ``ids``."""
        alike: dict[Any, list[str]] = {}
        for name in ids:
            size = self.reader.size(name)
            shapes = self.model.spec.understanding.size(*size), self.model.spec.generation.size(*size)
            alike.setdefault(shapes, []).append(name)
        batches = [
            names[start : start + self.batch_size]
            for names in alike.values()
            for start in range(0, len(names), self.batch_size)
        ]
        with ReadAhead(self._read, batches, self.read_ahead) as coming:
            for number, (chosen, pixels) in enumerate(coming):
                values = self._encode(chosen, pixels, check=number == 0)
                for row, name in enumerate(chosen):
                    yield name, {field: found[row] for field, found in values.items()}

    def _read(self, ids: Sequence[str]) -> dict[str, Images]:
        """A batch's images by field, on the CPU; the last one stands in for those that are missing."""
        images = [self.reader.load(name) for name in ids]
        images += images[-1:] * (self.batch_size - len(ids))
        spec = self.model.spec
        wanted = {"semantic": spec.understanding, "target": spec.generation}
        return {field: resized(images, wanted[field]) for field in self.model.cacheable}

    def _encode(self, ids: Sequence[str], pixels: Mapping[str, Images], check: bool) -> dict[str, list[Tensor]]:
        values: dict[str, list[Tensor]] = {}
        if "semantic" in pixels:
            seen = moved(pixels["semantic"], self.device)
            values["semantic"] = [row.float().cpu() for row in self.model.encode_semantic(seen).rows()]
        if "target" in pixels:
            padded = [*ids] + [ids[-1]] * (self.batch_size - len(ids))
            values["target"] = self._fixed_target(moved(pixels["target"], self.device), padded, check)
        return values

    def _fixed_target(self, pixels: Images, ids: Sequence[str], check: bool) -> list[Tensor]:
        """Targets that do not depend on any draw; a stored sample of a distribution would be another method."""

        def encoded(attempt: int) -> list[Tensor]:
            rng = SampleRng([derive_seed("extract", attempt, name) for name in ids])
            return [row.cpu() for row in self.model.encode_target(pixels, rng).rows()]

        values = encoded(0)
        if check and not all(map(torch.equal, values, encoded(1))):
            raise TypeError(
                f"{type(self.model).__name__} declares its target cacheable, but encode_target draws from rng; "
                "it must return the moments of the distribution, or not declare it"
            )
        return values
