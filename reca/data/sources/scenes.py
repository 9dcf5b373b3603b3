"""Rendered scenes as a source of images with captions, questions and exact ground truth."""

import io
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from reca.config import ScenesData
from reca.data.sources.base import Description, ImageSource, Item
from reca.data.synthetic.scenes import (
    SHAPES,
    Scene,
    full_caption,
    metadata,
    questions,
    render,
    sample_scene,
    sparse_caption,
)

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
                rng = random.Random(f"words-{self._seed}-{index}")
                self.done = index + 1
                yield scene_item(f"scene {self._seed}/{index}", pixels, scene, rng, SHAPES, {"scene": asdict(scene)})


def scene_item(
    source: str,
    pixels: NDArray[np.uint8],
    scene: Scene,
    rng: random.Random,
    kinds: Sequence[str],
    truth: Mapping[str, Any],
) -> Item:
    """Return an image (H, W, 3) as PNG with the captions and the ground truth of its scene."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    captions = sparse_caption(scene, rng), full_caption(scene, rng)
    questions_asked = [asdict(question) for question in questions(scene, rng, kinds)]
    ground_truth = {"metadata": metadata(scene), "questions": questions_asked, **truth}
    return Item(source, file.getvalue(), Description(*captions, ground_truth))


def from_config(data: ScenesData, seed: int, _root: Path, _largest_file: int) -> ScenesSource:
    """Return the scenes of the section ``data``."""
    return ScenesSource(data, seed)
