"""GenEval's colour head, without its encoders: which pixels it looks at, and how features become a colour.

After djghosh13/geneval@af4902f ``evaluate_images.py`` (MIT) and LAION's CLIP_benchmark zero-shot head (MIT), written
anew and proven on what they answer (``tests/golden/geneval``). The encoders are CLIP ViT-L/14 of OpenAI, in any
implementation.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from reca.evaluation.geneval_rules import COLORS

BACKGROUND = "#999"
ORIGINAL = "original"
"""The background that leaves the pixels around an object as they are."""
LOGIT_SCALE = 100.0

Features = NDArray[np.floating[Any]]


def crop_of(
    image: Image.Image,
    box: Sequence[float],
    mask: Image.Image | NDArray[np.bool_] | None = None,
    background: str = BACKGROUND,
    crop: bool = True,
) -> Image.Image:
    """What the colour head sees of an object: the object on a plain background, cut to its box.

    Args:
        image: The whole image.
        box: Left, top, right, bottom; more values are passed over, as a detector's score may follow.
        mask: The object's pixels (height, width), or ``None`` for detectors without masks, which keep the background.
        background: A colour as PIL reads it, or :data:`ORIGINAL`.
        crop: Whether to cut.

    Raises:
        ValueError: Image and mask differ in size.
    """
    pixels = image.convert("RGB")
    if mask is not None:
        stencil = mask if isinstance(mask, Image.Image) else Image.fromarray(np.asarray(mask, dtype=bool))
        if stencil.size != pixels.size:
            raise ValueError(f"an image of {pixels.size} with a mask of {stencil.size} pixels")
        blank = pixels if background == ORIGINAL else Image.new("RGB", pixels.size, background)
        pixels = Image.composite(pixels, blank, stencil.convert("1"))
    if not crop:
        return pixels
    left, top, right, bottom = (float(value) for value in box[:4])  # PIL 13 refuses arrays, and rounds itself
    return pixels.crop((left, top, right, bottom))


def texts_for(name: str, color: str) -> list[str]:
    """The three texts of a colour for objects of class ``name``; the article is "a" before vowels too."""
    return [f"a photo of a {color} {name}", f"a photo of a {color}-colored {name}", f"a photo of a {color} object"]


def class_vectors(text_features: Mapping[str, Features], name: str, colors: Sequence[str] = COLORS) -> Features:
    """Class vectors (D, number of colours): per colour the normalised mean of its texts' normalised features.

    Args:
        text_features: Text -> feature (D,), for all of :func:`texts_for`.
        name: Class of the objects.
        colors: The colours, in the order of the columns.

    Raises:
        KeyError: A text has no feature.
    """
    columns = []
    for color in colors:
        features = np.stack([np.asarray(text_features[text]) for text in texts_for(name, color)])
        columns.append(_normalised(_normalised(features).mean(axis=0)))
    return np.stack(columns, axis=1)


def logits_of(image_features: Features, vectors: Features) -> Features:
    """Logits (N, number of colours) of image features (N, D): 100 times the cosine."""
    return LOGIT_SCALE * (_normalised(np.asarray(image_features)) @ vectors)


def name_colors(image_features: Features, vectors: Features, colors: Sequence[str] = COLORS) -> list[str]:
    """The best colour of each image feature (N, D)."""
    return [colors[index] for index in logits_of(image_features, vectors).argmax(axis=1)]


def _normalised(features: Features) -> Features:
    return features / np.linalg.norm(features, axis=-1, keepdims=True)
