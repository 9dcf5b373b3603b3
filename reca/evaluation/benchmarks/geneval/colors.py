"""GenEval's colour classifier without its encoders: the crop of an object, and the step from features to a colour.

After djghosh13/geneval@af4902f ``evaluate_images.py`` (MIT) and LAION's CLIP_benchmark zero-shot head (MIT),
re-implemented, and compared with their answers in ``tests/golden/geneval``. The encoders are OpenAI's CLIP ViT-L/14, in
any implementation.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from reca.evaluation.geneval_rules import COLORS

BACKGROUND = "#999"
LOGIT_SCALE = 100.0

Features = NDArray[np.floating[Any]]


def crop_of(image: Image.Image, box: Sequence[float], mask: NDArray[np.bool_] | None) -> Image.Image:
    """Return an object on a grey background, cut to its box.

    Args:
        image: The whole image.
        box: Left, top, right, bottom; further values, such as a score, are ignored.
        mask: The object's pixels (height, width); ``None`` (a detector without masks) keeps the background.

    Raises:
        ValueError: Image and mask differ in size.
    """
    pixels = image.convert("RGB")
    if mask is not None:
        stencil = Image.fromarray(np.asarray(mask, dtype=bool))
        if stencil.size != pixels.size:
            raise ValueError(f"an image of {pixels.size} with a mask of {stencil.size} pixels")
        pixels = Image.composite(pixels, Image.new("RGB", pixels.size, BACKGROUND), stencil.convert("1"))
    left, top, right, bottom = (float(value) for value in box[:4])  # PIL 13 refuses arrays, and rounds itself
    return pixels.crop((left, top, right, bottom))


def texts_for(name: str, color: str) -> list[str]:
    """Return the three texts of a colour for objects of class ``name``; the article is "a" before vowels too."""
    return [f"a photo of a {color} {name}", f"a photo of a {color}-colored {name}", f"a photo of a {color} object"]


def class_vectors(text_features: Mapping[str, Features], name: str) -> Features:
    """Return class vectors (D, 10), a column per colour: the normalised mean of its texts' normalised features.

    Args:
        text_features: Text -> feature (D,), for all of :func:`texts_for`.
        name: Class of the objects.

    Raises:
        KeyError: A text has no feature.
    """
    columns = []
    for color in COLORS:
        features = np.stack([np.asarray(text_features[text]) for text in texts_for(name, color)])
        columns.append(_normalise(_normalise(features).mean(axis=0)))
    return np.stack(columns, axis=1)


def logits_of(image_features: Features, vectors: Features) -> Features:
    """Return logits (N, 10) of image features (N, D): 100 times the cosine."""
    return LOGIT_SCALE * (_normalise(np.asarray(image_features)) @ vectors)


def name_colors(image_features: Features, vectors: Features) -> list[str]:
    """Return the best colour for each image feature (N, D)."""
    return [COLORS[index] for index in logits_of(image_features, vectors).argmax(axis=1)]


def _normalise(features: Features) -> Features:
    return features / np.linalg.norm(features, axis=-1, keepdims=True)
