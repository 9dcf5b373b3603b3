"""Conversion of Mask2Former's logits to GenEval's detections, exactly as in mmdet.

After open-mmlab/mmdetection's instance post-processing (Apache-2.0), re-implemented from the arithmetic and compared
with its answers in ``tests/golden/geneval/detector``. The post-processing of transformers differs: it works on a fixed
grid of 384 x 384, keeps the padding and enlarges without interpolation, which moves boxes and scores.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from reca.evaluation.benchmarks.geneval.prompts import OBJECTS

MAX_DETECTIONS = 100
Size = tuple[int, int]


@dataclass(frozen=True)
class MaskedDetection:
    """One detected instance. Numbers are float32 like the original's, which compares thresholds in float32."""

    label: int
    """Index of the class among COCO's 80."""
    score: np.float32
    box: tuple[np.float32, ...]
    """Left, top, right, bottom in pixels; right and bottom are one beyond the last pixel."""
    mask: NDArray[np.bool_]
    """(height, width) of the original image."""

    @property
    def name(self) -> str:
        """GenEval's name of the class."""
        return OBJECTS[self.label]


@torch.no_grad()
def detections_of(
    class_logits: Tensor,
    mask_logits: Tensor,
    padded: Size,
    resized: Size,
    original: Size,
) -> list[MaskedDetection]:
    """Return the instances in one image, best class probability first, without suppression or threshold.

    The ``MAX_DETECTIONS`` most probable pairs of query and class are kept.

    Args:
        class_logits: (queries, classes + 1); the last is "no object".
        mask_logits: (queries, height / 4, width / 4) of the padded input.
        padded: Height and width of the input with its padding.
        resized: Height and width of the image within it.
        original: Height and width of the image before it was resized.

    Raises:
        ValueError: The shapes do not fit each other.
    """
    if class_logits.ndim != 2 or mask_logits.ndim != 3 or len(class_logits) != len(mask_logits):
        raise ValueError(f"logits of shape {tuple(class_logits.shape)} and {tuple(mask_logits.shape)} do not fit")
    if any(inner > outer for inner, outer in zip(resized, padded, strict=True)):
        raise ValueError(f"an image of {resized} does not fit into a padded input of {padded}")
    classes = class_logits.shape[1] - 1
    probabilities = class_logits.float().softmax(dim=-1)[:, :-1].flatten()
    best = probabilities.topk(min(MAX_DETECTIONS, len(probabilities)))
    queries, query_of = (best.indices // classes).unique(return_inverse=True)  # a query may have several classes
    # (Q, h / 4, w / 4) -> (Q, H, W): to the padded input, without the padding, to the original image
    logits = _enlarge(mask_logits[queries].float(), padded)[:, : resized[0], : resized[1]]
    logits = _enlarge(logits, original)
    masks = logits > 0
    certainty = (logits.sigmoid() * masks).flatten(1).sum(1) / (masks.flatten(1).sum(1) + 1e-6)
    scores = (best.values * certainty[query_of]).cpu().numpy().astype(np.float32)
    boxes, pixels = [_box(mask) for mask in masks], masks.cpu().numpy()
    labels = (best.indices % classes).tolist()
    return [
        MaskedDetection(label, score, boxes[query], pixels[query])
        for label, score, query in zip(labels, scores, query_of.tolist(), strict=True)
    ]


def _enlarge(logits: Tensor, size: Size) -> Tensor:
    return F.interpolate(logits[None], size=size, mode="bilinear", align_corners=False)[0]


def _box(mask: Tensor) -> tuple[np.float32, ...]:
    """Return the tight box of a mask; zeros if it is empty."""
    rows, columns = (torch.where(mask.any(dim=dim))[0] for dim in (1, 0))
    edges: list[Any] = [0, 0, 0, 0]
    if len(rows):
        edges = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    return tuple(np.float32(int(edge)) for edge in edges)
