"""Collages of cut-outs as a source of images with captions, questions and exact masks."""

import io
import random
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from PIL import Image

from reca.config import CollagesData
from reca.data.sources.base import Description, ImageSource, Item
from reca.data.synthetic.collages import compose, objects, read_cutouts, sample_collage
from reca.data.synthetic.scenes import full_caption, metadata, questions, sparse_caption


class CollagesSource(ImageSource):
    """The collages of a run, a function of the cut-outs, its seed, the image size and their number.

    Args:
        data: Size and number.
        seed: The run's seed.
        folder: The folder of the cut-outs.

    Raises:
        UserError: There are no cut-outs; on iteration: one is too thin for the image size.
    """

    unit = "collages"

    def __init__(self, data: CollagesData, seed: int, folder: Path) -> None:
        self.total = data.num_images
        self._size, self._seed = data.image_size, seed
        self._cutouts = read_cutouts(folder)

    def __iter__(self) -> Iterator[Item]:
        for index in range(self.total):
            collage = sample_collage(self._cutouts, self._seed, index)
            pixels, masks = compose(collage, self._size)
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, "PNG", compress_level=1)
            rng, scene = random.Random(f"collage-words-{self._seed}-{index}"), collage.scene
            description = Description(
                caption=sparse_caption(scene, rng),
                full_caption=full_caption(scene, rng),
                ground_truth={
                    "metadata": metadata(scene),
                    "questions": [asdict(question) for question in questions(scene, rng, list(self._cutouts))],
                    "objects": objects(collage, masks),
                },
            )
            self.done = index + 1
            yield Item(f"collage {self._seed}/{index}", file.getvalue(), description)


def from_config(data: CollagesData, seed: int, root: Path, _largest_file: int) -> CollagesSource:
    """Return the collages of the section ``data``."""
    return CollagesSource(data, seed, root / data.path)
