"""An image encoder of transformers from a local folder (CLIP, SigLIP, DINOv2, ...): images in, directions out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError
from transformers import AutoImageProcessor, AutoModel

BATCH = 32
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
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(f"{folder / 'config.json'} is missing: there is no image encoder")
        try:
            network, report = AutoModel.from_pretrained(
                folder, local_files_only=True, dtype=torch.float32, output_loading_info=True
            )
            processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
            raise ValueError(f"{folder} is no image encoder that transformers can load: {error}") from None
        if missing := sorted(report["missing_keys"]):
            raise ValueError(f"{folder} lacks {len(missing)} weights of its encoder, such as {missing[0]}")
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
