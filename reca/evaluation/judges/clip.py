"""CLIP's text and image encoders.

Images are prepared as OpenAI's and open_clip's CLIP prepares them: the shorter side resized to the network's size
(bicubic, by Pillow), the middle cut out, normalised.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer, CLIPModel

from reca.evaluation.judges.local_models import explain_load_errors, load_complete

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
BATCH = 64
Features = NDArray[np.float32]


class Clip:
    """A CLIP model of transformers with its tokenizer."""

    def __init__(self, network: CLIPModel, tokenizer: Any) -> None:
        self._network, self._tokenizer = network.eval(), tokenizer

    @classmethod
    def load(cls, folder: Path, device: torch.device) -> Self:
        """Load a folder in the layout of transformers.

        Raises:
            FileNotFoundError: ``config.json`` is missing.
            ValueError: The folder holds another model, or lacks weights or the tokenizer.
        """
        network = load_complete(CLIPModel, folder, "CLIP")
        with explain_load_errors(folder, "CLIP"):
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        return cls(network.to(device), tokenizer)

    @property
    def _device(self) -> torch.device:
        return next(self._network.parameters()).device

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Features:
        """Encode texts as features (number of texts, D), not normalised."""
        length = self._network.config.text_config.max_position_embeddings
        features = []
        for start in range(0, len(texts), BATCH):
            batch = list(texts[start : start + BATCH])
            tokens = self._tokenizer(batch, padding=True, truncation=True, max_length=length, return_tensors="pt")
            ids, mask = tokens["input_ids"].to(self._device), tokens["attention_mask"].to(self._device)
            hidden = self._network.text_model(input_ids=ids, attention_mask=mask).pooler_output
            features.append(self._network.text_projection(hidden).float().cpu().numpy())
        return np.concatenate(features)

    @torch.inference_mode()
    def images(self, images: Sequence[Image.Image]) -> Features:
        """Encode images as features (number of images, D), not normalised."""
        side = self._network.config.vision_config.image_size
        features = []
        for start in range(0, len(images), BATCH):
            pixels = torch.stack([prepare(image, side) for image in images[start : start + BATCH]]).to(self._device)
            hidden = self._network.vision_model(pixel_values=pixels).pooler_output
            features.append(self._network.visual_projection(hidden).float().cpu().numpy())
        return np.concatenate(features)


def prepare(image: Image.Image, side: int) -> Tensor:
    """Convert an image of any size to the network's input (3, side, side); an image without pixels becomes black."""
    width, height = image.size
    if not width or not height:
        image, width, height = Image.new("RGB", (side, side)), side, side
    if width <= height:
        size = side, max(int(side * height / width), side)
    else:
        size = max(int(side * width / height), side), side
    resized = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    left, top = round((size[0] - side) / 2), round((size[1] - side) / 2)
    pixels = np.asarray(resized.crop((left, top, left + side, top + side)), np.float32) / 255
    normalised = (pixels - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    return torch.from_numpy(normalised).permute(2, 0, 1)
