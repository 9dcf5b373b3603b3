"""Rendered scenes as a source of images with captions, questions and exact ground truth."""

import io
import random
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from PIL import Image

from reca.config import ScenesData
from reca.data.sources.base import Description, ImageSource, Item
from reca.data.synthetic.scenes import full_caption, metadata, questions, render, sample_scene, sparse_caption

# Seeds of training data start here; pre-training and benchmarks use small ones, so they never share a scene.
FIRST_TRAINING_SEED = 1 << 32
SCENES_PER_CHUNK = 500


class ScenesSource(ImageSource):
    """The scenes of a run, a function of its seed, the image size and their number."""

    unit = "scenes"

    def __init__(self, data: ScenesData, seed: int) -> None:
        self.total = data.num_images
        self._size = data.image_size
        self._seed = FIRST_TRAINING_SEED + seed

    def __iter__(self) -> Iterator[Item]:
        for start in range(0, self.total, SCENES_PER_CHUNK):
            indices = range(start, min(start + SCENES_PER_CHUNK, self.total))
            scenes = [sample_scene(self._seed, index) for index in indices]
            for index, scene, pixels in zip(indices, scenes, render(scenes, self._size), strict=True):
                file = io.BytesIO()
                Image.fromarray(pixels).save(file, "PNG", compress_level=1)
                rng = random.Random(f"words-{self._seed}-{index}")
                description = Description(
                    caption=sparse_caption(scene, rng),
                    full_caption=full_caption(scene, rng),
                    ground_truth={
                        "metadata": metadata(scene),
                        "questions": [asdict(question) for question in questions(scene, rng)],
                        "scene": asdict(scene),
                    },
                )
                self.done = index + 1
                yield Item(f"scene {self._seed}/{index}", file.getvalue(), description)


def from_config(data: ScenesData, seed: int, _root: Path, _largest_file: int) -> ScenesSource:
    """Return the scenes of the section ``data``."""
    return ScenesSource(data, seed)
