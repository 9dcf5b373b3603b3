"""Image encoders as judges: how like are two images in the eyes of CLIP or DINOv2?"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from reca.evaluation.benchmark import Judge
from reca.evaluation.judges import local_models
from reca.evaluation.samples import Row, UnreadableSample, read_image
from reca.runtime.distributed import choose_device
from reca.runtime.errors import UserError

if TYPE_CHECKING:
    from reca.evaluation.judges.image_encoder import ImageEncoder


class Encoders:
    """Some encoders, each loaded once, when it is needed.

    Args:
        root: The project folder.
        sources: ``REPOSITORY@REVISION`` of each; they lie in ``data/judges/``.
        device: As in ``hardware.device``.
    """

    def __init__(self, root: Path, sources: Sequence[str], device: str) -> None:
        self._root, self._sources, self._device = root, tuple(sources), device
        self.names = [local_models.judge_folder(root, source).name for source in sources]

    def beside(self, judge: Judge) -> Judge:
        """The identity of a judge and these.

        Raises:
            UserError: One is not there.
        """
        if not self._sources:
            return judge
        mine = local_models.judge_identity(self._root, *self._sources)
        return Judge(
            name=f"{judge.name}+{mine.name}", version=f"{judge.version}+{mine.version}", accuracy=judge.accuracy
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

    def likeness(self, rows: Sequence[Row], folder: Path) -> list[dict[str, float | None]]:
        """Per row the cosine of ``file`` and ``original`` by encoder, at least 0; ``None`` where one is no image.

        Raises:
            UserError: An encoder is not there, or cannot be loaded.
        """
        if not self._sources:
            return [{} for _ in rows]
        pairs: dict[int, tuple[Image.Image, Image.Image]] = {}
        for number, row in enumerate(rows):
            try:
                drawn, original = (Image.fromarray(read_image(folder, row, key)) for key in ("file", "original"))
            except UnreadableSample:
                continue
            pairs[number] = drawn, original
        found: list[dict[str, float | None]] = [dict.fromkeys(self.names) for _ in rows]
        for name, encoder in self._loaded.items() if pairs else ():
            first, second = (encoder.directions(images) for images in zip(*pairs.values(), strict=True))
            for number, cosine in zip(pairs, np.sum(first * second, axis=1), strict=True):
                found[number][name] = max(0.0, min(1.0, float(cosine)))
        return found
