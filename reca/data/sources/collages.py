"""Collages of cut-outs as a source of images with captions, questions and exact masks."""

import random
from collections.abc import Iterator
from pathlib import Path

from reca.config import CollagesData
from reca.data.sources.base import ImageSource, Item
from reca.data.sources.scenes import scene_item
from reca.data.synthetic.collages import compose, objects, read_cutouts, sample_collage


class CollagesSource(ImageSource):
    """The collages of a run, a function of the cut-outs, its seed, the image size and their number.

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
            rng, nouns = random.Random(f"collage-words-{self._seed}-{index}"), list(self._cutouts)
            annotations, source = objects(collage, masks), f"collage {self._seed}/{index}"
            self.done = index + 1
            yield scene_item(source, pixels, collage.scene, rng, nouns, {"objects": annotations})


def from_config(data: CollagesData, seed: int, root: Path, _largest_file: int) -> CollagesSource:
    """Return the collages of the section ``data``."""
    return CollagesSource(data, seed, root / data.path)
