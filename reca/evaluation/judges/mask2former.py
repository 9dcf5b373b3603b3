"""Mask2Former as an instance segmenter: images in, logits and the sizes that go with them out.

The input is prepared as mmdet 2.x prepares it (Mask2Former's ``..._lsj_8x2_50e_coco`` configuration): resized with
the ratio kept until it fits 1333 x 800, by OpenCV's arithmetic, padded on the right and below with grey to multiples of
32, normalised. What becomes of the logits is for the caller to say.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from transformers import Mask2FormerForUniversalSegmentation

from reca.evaluation.judges.local_models import load_complete

LONG_SIDE, SHORT_SIDE, MULTIPLE = 1333, 800, 32
MEAN = (123.675, 116.28, 103.53)
DEVIATION = (58.395, 57.12, 57.375)
GREY = 128
"""What mmdet 2.x pads with, before it normalises; 3.x pads with zeros afterwards."""
WEIGHT_BITS = 11
"""OpenCV's interpolation weights are multiples of 2^-11."""
CLASSES = 80
"""COCO's."""
Size = tuple[int, int]


@dataclass(frozen=True)
class InstanceLogits:
    """What the network says of one image; sizes are (height, width) in pixels."""

    classes: Tensor
    """(queries, classes + 1); the last is "no object"."""
    masks: Tensor
    """(queries, padded height / 4, padded width / 4)."""
    padded: Size
    resized: Size
    original: Size


class InstanceSegmenter:
    """A Mask2Former with COCO's 80 classes.

    Args:
        network: transformers' class, in evaluation mode.
        short_side: To what the shorter side is enlarged; smaller ones are for tests.
    """

    def __init__(self, network: Mask2FormerForUniversalSegmentation, short_side: int = SHORT_SIDE) -> None:
        self._network = network.eval()
        self.short_side = short_side

    @classmethod
    def load(cls, folder: Path, device: torch.device) -> Self:
        """Load a folder in the layout of transformers.

        Raises:
            FileNotFoundError: ``config.json`` is missing.
            ValueError: It is another model, lacks weights, or does not tell COCO's 80 classes apart.
        """
        network = load_complete(Mask2FormerForUniversalSegmentation, folder, "Mask2Former")
        if network.config.num_labels != CLASSES:
            raise ValueError(
                f"the Mask2Former in {folder} has {network.config.num_labels} classes, not COCO's {CLASSES}"
            )
        return cls(network.to(device))

    @torch.inference_mode()
    def predict(self, images: Sequence[NDArray[np.uint8]]) -> list[InstanceLogits]:
        """Logits of RGB images (height, width, 3) that all have the same size.

        Raises:
            ValueError: Sizes differ.
        """
        sizes = {image.shape for image in images}
        if len(sizes) != 1:
            raise ValueError(f"images of one size are seen together, not {sorted(sizes)}")
        device = next(self._network.parameters()).device
        inputs, resized = prepare(torch.from_numpy(np.stack(images)).to(device), self.short_side)
        seen = self._network(pixel_values=inputs)
        padded, original = _size(inputs), (images[0].shape[0], images[0].shape[1])
        return [
            InstanceLogits(classes, masks, padded, resized, original)
            for classes, masks in zip(seen.class_queries_logits, seen.masks_queries_logits, strict=True)
        ]


def prepare(images: Tensor, short_side: int = SHORT_SIDE) -> tuple[Tensor, Size]:
    """The network's input (B, 3, padded height, padded width) and the size of the images in it.

    Args:
        images: (B, height, width, 3), 0..255.
        short_side: See :class:`InstanceSegmenter`; the longer side may become 1333 / 800 of it.
    """
    height, width = images.shape[1:3]
    longest = LONG_SIDE * short_side / SHORT_SIDE
    scale = min(longest / max(height, width), short_side / min(height, width))
    resized = int(height * scale + 0.5), int(width * scale + 0.5)
    below, right = (-side % MULTIPLE for side in resized)
    pixels = F.pad(opencv_bilinear(images, resized), (0, 0, 0, right, 0, below), value=GREY).float()
    mean, deviation = (pixels.new_tensor(values) for values in (MEAN, DEVIATION))
    return ((pixels - mean) / deviation).permute(0, 3, 1, 2).contiguous(), resized


def opencv_bilinear(images: Tensor, size: Size) -> Tensor:
    """Images in another size, to the last bit as ``cv2.resize`` (4.11, 5.0) enlarges and shrinks bytes by default.

    Args:
        images: (B, height, width, channels), 0..255.
        size: Height and width to come.

    Returns:
        (B, *size, channels) of int32, 0..255.
    """
    left, right, of_left, of_right = _neighbours(images.shape[2], size[1], images.device)
    above, below, of_above, of_below = _neighbours(images.shape[1], size[0], images.device)
    pixels = images.int()
    rows = (pixels[:, :, left] * of_left[:, None] + pixels[:, :, right] * of_right[:, None]) >> 4
    # Cut off one by one, also at an edge, where both are the same row.
    upper = rows[:, above] * of_above[:, None, None] >> 16
    lower = rows[:, below] * of_below[:, None, None] >> 16
    return (upper + lower + 2) >> 2


def _neighbours(length: int, wanted: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Along one axis, for every new pixel: the old ones before and after it, and their weights of 2^11 together."""
    place = ((torch.arange(wanted, dtype=torch.float64) + 0.5) * (1 / (wanted / length)) - 0.5).float()
    before = place.floor()
    share = place - before
    first, second = (each.long().clamp(0, length - 1).to(device) for each in (before, before + 1))
    of_first, of_second = ((each * 2**WEIGHT_BITS).round().int().to(device) for each in (1 - share, share))
    return first, second, of_first, of_second


def _size(images: Tensor) -> Size:
    return images.shape[-2], images.shape[-1]
