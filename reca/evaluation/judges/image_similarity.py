"""Image encoders, such as CLIP or DINOv2, as judges of the similarity of two images."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from reca.evaluation.benchmark import Judge
from reca.evaluation.judges import local_models
from reca.evaluation.samples import Row, UnreadableSample, read_image
from reca.runtime.device import choose_device
from reca.runtime.errors import UserError

if TYPE_CHECKING:
    from reca.evaluation.judges.image_encoder import ImageEncoder


class Encoders:
    """Image encoders, loaded at their first use.

    Args:
        root: The project folder.
        sources: Their ``REPOSITORY@REVISION``; the folders are in ``data/judges/``.
        device: ``hardware.device``.
    """

    def __init__(self, root: Path, sources: Sequence[str], device: str) -> None:
        self._root, self._sources, self._device = root, tuple(sources), device
        self.names = [local_models.judge_folder(root, source).name for source in sources]

    def combined_identity(self, judge: Judge) -> Judge:
        """Return the identity of a judge together with the encoders.

        Raises:
            UserError: An encoder is missing.
        """
        if not self._sources:
            return judge
        encoders = local_models.judge_identity(self._root, *self._sources)
        return Judge(
            name=f"{judge.name}+{encoders.name}",
            version=f"{judge.version}+{encoders.version}",
            accuracy=judge.accuracy,
        )

    @cached_property
    def _loaded(self) -> "dict[str, ImageEncoder]":
        from reca.evaluation.judges.image_encoder import ImageEncoder

        try:
            loaded = [
                ImageEncoder.load(local_models.existing_judge_folder(self._root, source), choose_device(self._device))
                for source in self._sources
            ]
        except (FileNotFoundError, ValueError) as error:
            raise UserError(f"{error}; delete the folder and let `reca compose` fetch it again") from None
        return dict(zip(self.names, loaded, strict=True))

    def cosines(self, rows: Sequence[Row], folder: Path) -> list[dict[str, float | None]]:
        """Return by row and encoder the cosine of ``file`` and ``original``, at least 0; ``None`` if one is unreadable.

        Raises:
            UserError: An encoder is missing or cannot be loaded.
        """
        if not self._sources:
            return [{} for _ in rows]
        pairs: dict[int, tuple[Image.Image, Image.Image]] = {}
        for index, row in enumerate(rows):
            try:
                image, original = (Image.fromarray(read_image(folder, row, key)) for key in ("file", "original"))
            except UnreadableSample:
                continue
            pairs[index] = image, original
        results: list[dict[str, float | None]] = [dict.fromkeys(self.names) for _ in rows]
        for name, encoder in self._loaded.items() if pairs else ():
            first, second = (encoder.directions(images) for images in zip(*pairs.values(), strict=True))
            for index, cosine in zip(pairs, np.sum(first * second, axis=1), strict=True):
                results[index][name] = max(0.0, min(1.0, float(cosine)))
        return results
