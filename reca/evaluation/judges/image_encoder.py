"""An image encoder of transformers from a local folder (CLIP, SigLIP, DINOv2, ...): images in, directions out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

from reca.evaluation.judges.local_models import explain_load_errors, load_complete

BATCH = 32
WHAT = "image encoder"
Features = NDArray[np.float32]


class ImageEncoder:
    """An encoder with its own preparation of images.

    Args:
        network: A model of transformers with ``get_image_features``, or one whose output has a ``pooler_output``.
        processor: Its image processor.
    """

    def __init__(self, network: Any, processor: Any) -> None:
        self._network, self._processor = network.eval(), processor

    @classmethod
    def load(cls, folder: Path, device: torch.device) -> Self:
        """Load a folder in the layout of transformers, in float32.

        Raises:
            FileNotFoundError: ``config.json`` is missing.
            ValueError: It holds no such model, or not all of its weights.
        """
        network = load_complete(AutoModel, folder, WHAT)
        with explain_load_errors(folder, WHAT):
            processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        return cls(network.to(device), processor)

    @torch.inference_mode()
    def directions(self, images: Sequence[Image.Image]) -> Features:
        """Features of each image as unit vectors, (number of images, D)."""
        found = []
        encode = getattr(self._network, "get_image_features", self._network)
        for start in range(0, len(images), BATCH):
            pixels = self._processor(images=list(images[start : start + BATCH]), return_tensors="pt")["pixel_values"]
            features = encode(pixel_values=pixels.to(self._network.device)).pooler_output
            found.append(torch.nn.functional.normalize(features.float(), dim=-1).cpu().numpy())
        return np.concatenate(found)
