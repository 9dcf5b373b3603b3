"""Train the scene detector, the judge of the rendered-scenes benchmark, and measure it on held-out scenes.

Its scenes come from seeds of its own (:data:`TRAIN_SEED`, :data:`HELD_OUT_SEED`), so models and benchmarks use other
scenes. A judge must not find shapes in failed samples, so some inputs are noise or scrambled scenes, whose label is
"no object".
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from reca.data.synthetic.scenes import COLORS, MAX_OBJECTS, SHAPES, Scene, Shape, render, sample_scene, signed_distance
from reca.evaluation.judges.scene_detector import STRIDE, WEIGHTS, Detection, DetectorOutput, SceneDetector
from reca.runtime.files import atomic_folder, write_json
from reca.runtime.hashing import file_digest
from reca.runtime.progress import Progress
from tools.tiny_bases.detector_card import model_card

TRAIN_SEED, HELD_OUT_SEED = 110, 111
NUM_TRAIN, NUM_HELD_OUT = 40_000, 4_000
BATCH_SIZE, LEARNING_RATE, WARMUP = 96, 2e-3, 100
NEGATIVES = 0.125
"""Share of a batch without any shape."""
SCORE_THRESHOLD = 0.3
IMAGE_SIZE = 24


@dataclass(frozen=True)
class SceneBatch:
    """Rendered scenes and their shapes; ``slot`` runs over MAX_OBJECTS, unused ones have ``valid`` False."""

    images: Tensor
    """(N, 3, S, S) uint8"""
    valid: Tensor
    """(N, slot) bool"""
    cell: Tensor
    """Heat-map cells of the centers, row * width + column, (N, slot) int64."""
    name: Tensor
    """(N, slot) int64, index into SHAPES."""
    color: Tensor
    """(N, slot) int64, index into COLORS."""
    edges: Tensor
    """Pixels from the cell's center to the box's left, top, right, bottom, (N, slot, 4)."""

    def rows(self, index: Tensor) -> "SceneBatch":
        """Select scenes."""
        return SceneBatch(*(getattr(self, name)[index] for name in self.__dataclass_fields__))


def train_detector(out: Path, seed: int = 0, steps: int = 2500) -> dict[str, float]:
    """Train, measure on held-out scenes, and write weights, ``card.json`` and ``README.md`` to ``out``.

    Args:
        out: Folder to replace.
        seed: Seed of the weights, the batch order and the augmentation.
        steps: Optimizer steps with :data:`BATCH_SIZE` images each.

    Returns:
        The held-out accuracy (:func:`measure`) of the card.
    """
    began, progress = time.monotonic(), Progress(steps, "steps")
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    scenes = scene_batch([sample_scene(TRAIN_SEED, index) for index in range(NUM_TRAIN)])
    detector = SceneDetector(SHAPES, tuple(COLORS), IMAGE_SIZE).train()
    optimizer = torch.optim.AdamW(detector.parameters(), LEARNING_RATE, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / WARMUP) * (1 - step / steps) + 0.005
    )
    for step in range(steps):
        batch = scenes.rows(torch.randint(NUM_TRAIN, (BATCH_SIZE,), generator=generator))
        images, valid = augment(batch, generator)
        loss = detection_loss(detector(images), batch, valid)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        progress.update(step + 1, f"loss {loss.item():.3f}")
    seconds = time.monotonic() - began
    held_out = [sample_scene(HELD_OUT_SEED, index) for index in range(NUM_HELD_OUT)]
    accuracy = measure(detector, held_out)
    with atomic_folder(out) as folder:
        detector.save(folder)
        card = {
            "model": "scene_detector",
            "sha256": file_digest(folder / WEIGHTS),
            "parameters": sum(p.numel() for p in detector.parameters()),
            "accuracy": accuracy,
            "score_threshold": SCORE_THRESHOLD,
            "recipe": {
                "seed": seed,
                "steps": steps,
                "batch_size": BATCH_SIZE,
                "learning_rate": LEARNING_RATE,
                "negatives": NEGATIVES,
                "train_scenes": {"seed": TRAIN_SEED, "count": NUM_TRAIN},
                "held_out_scenes": {"seed": HELD_OUT_SEED, "count": NUM_HELD_OUT},
            },
            "train_seconds": round(seconds),
            "torch": torch.__version__,
        }
        write_json(folder / "card.json", card)
        (folder / "README.md").write_text(model_card(card))
    return accuracy


def scene_batch(scenes: Sequence[Scene], size: int = IMAGE_SIZE) -> SceneBatch:
    """Render scenes and build the detector's targets."""
    images = torch.from_numpy(render(scenes, size)).permute(0, 3, 1, 2).contiguous()
    count, side = len(scenes), size // STRIDE
    valid = torch.zeros(count, MAX_OBJECTS, dtype=torch.bool)
    cell, name, color = (torch.zeros(count, MAX_OBJECTS, dtype=torch.int64) for _ in range(3))
    edges = torch.zeros(count, MAX_OBJECTS, 4)
    colors = list(COLORS)
    for row, scene in enumerate(scenes):
        for slot, shape in enumerate(scene.shapes):
            x, y = int(shape.x * side), int(shape.y * side)
            left, top, right, bottom = (size * value for value in shape_box(shape))
            center = ((x + 0.5) * STRIDE, (y + 0.5) * STRIDE)
            valid[row, slot], cell[row, slot] = True, y * side + x
            name[row, slot], color[row, slot] = SHAPES.index(shape.kind), colors.index(shape.color)
            edges[row, slot] = torch.tensor([center[0] - left, center[1] - top, right - center[0], bottom - center[1]])
    return SceneBatch(images, valid, cell, name, color, edges)


@cache
def unit_box(kind: str) -> tuple[float, float, float, float]:
    """Tight box (left, top, right, bottom) of a shape of radius 1 at the origin, read off its distance field."""
    line = np.linspace(-1.2, 1.2, 961, dtype=np.float32)
    inside = signed_distance(kind, line[None, :], line[:, None]) <= 0
    rows, columns = line[inside.any(1)], line[inside.any(0)]
    return float(columns[0]), float(rows[0]), float(columns[-1]), float(rows[-1])


def shape_box(shape: Shape) -> tuple[float, float, float, float]:
    """Tight box of a shape, as fractions of the image side."""
    left, top, right, bottom = (shape.radius * value for value in unit_box(shape.kind))
    return shape.x + left, shape.y + top, shape.x + right, shape.y + bottom


def augment(batch: SceneBatch, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Distort images as models do, and remove the shapes of some.

    Returns:
        Images (B, 3, S, S) in [-1, 1], and ``batch.valid`` with all slots off in images without shapes.
    """
    images = batch.images.float() / 127.5 - 1
    count, _, size, _ = images.shape

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=rng)

    images = _blur(images, uniform(count, 1, 1, 1) * (uniform(count, 1, 1, 1) < 0.3))
    gain, shift = 1 + 0.1 * (uniform(count, 3, 1, 1) - 0.5), 0.12 * (uniform(count, 3, 1, 1) - 0.5)
    # A tokenizer decodes patch by patch and errs by patch.
    patches = 0.2 * uniform(count, 1, 1, 1) * (uniform(count, 3, size // 4, size // 4) - 0.5)
    images = images * gain + shift + functional.interpolate(patches, (size, size))
    is_negative = torch.arange(count) < round(NEGATIVES * count)
    images[is_negative] = _without_shapes(images[is_negative], rng)
    noise = torch.randn(images.shape, generator=rng) * uniform(count, 1, 1, 1) * 0.12
    return (images + noise).clamp(-1, 1), batch.valid & ~is_negative[:, None]


def _blur(images: Tensor, strength: Tensor) -> Tensor:
    """Mix each image with its 3 x 3 binomial blur; ``strength`` (B, 1, 1, 1) from 0 (none) to 1 (all)."""
    line = torch.tensor([0.25, 0.5, 0.25])
    kernel = (line[:, None] * line[None, :]).expand(3, 1, 3, 3)
    padded = functional.pad(images, (1, 1, 1, 1), mode="replicate")
    return images + strength * (functional.conv2d(padded, kernel, groups=3) - images)


def _without_shapes(images: Tensor, rng: torch.Generator) -> Tensor:
    """Turn images into failed samples: scrambled patches, coarse or fine noise, a plain background; (B, 3, S, S)."""
    result = images.clone()
    size = images.shape[-1]
    for row in range(len(images)):
        match row % 4:
            case 0:  # the image's own 4 x 4 patches in another order
                patches = functional.unfold(images[row : row + 1], 4, stride=4)
                order = torch.randperm(patches.shape[-1], generator=rng)
                result[row] = functional.fold(patches[:, :, order], (size, size), 4, stride=4)[0]
            case 1:  # patches or clouds of random colors, two pixels to a third of the image wide
                cells = int(torch.randint(3, size // 2 + 1, (), generator=rng))
                coarse = torch.rand((1, 3, cells, cells), generator=rng) * 2 - 1
                mode = "bilinear" if torch.rand((), generator=rng) < 0.5 else "nearest"
                result[row] = functional.interpolate(coarse, (size, size), mode=mode)[0]
            case 2:  # fine noise on the image's background
                strength = torch.rand((), generator=rng)
                result[row] = images[row, :, :1, :1] + strength * torch.randn((3, size, size), generator=rng)
            case _:  # the background without shapes
                result[row] = images[row, :, :1, :1]
    return result


def detection_loss(output: DetectorOutput, batch: SceneBatch, valid: Tensor) -> Tensor:
    """Loss of heat map (weighted cross-entropy per object), shape, color and box (smooth L1, pixels)."""
    row, slot = valid.nonzero().T
    cell = batch.cell[row, slot]
    heat = torch.zeros_like(output.heat).flatten(1)
    heat[row, cell] = 1
    heat = heat.view_as(output.heat)
    # The cells around a center may fire as well (only the maximum counts), so errors there have little weight:
    # a center on the corner of four cells then scores high in all four instead of a quarter in each.
    near = (functional.max_pool2d(heat[:, None], 3, 1, 1)[:, 0] > heat).float()
    weight = 1 + 6 * heat - 0.97 * near
    objects = max(len(row), 1)
    heat_loss = functional.binary_cross_entropy_with_logits(output.heat, heat, weight, reduction="sum") / objects

    def at_centers(maps: Tensor) -> Tensor:
        return maps.flatten(2)[row, :, cell]

    shape_loss = functional.cross_entropy(at_centers(output.names), batch.name[row, slot])
    color_loss = functional.cross_entropy(at_centers(output.colors), batch.color[row, slot])
    box_loss = functional.smooth_l1_loss(at_centers(output.edges), batch.edges[row, slot])
    return heat_loss + shape_loss + color_loss + box_loss


def measure(detector: SceneDetector, scenes: Sequence[Scene]) -> dict[str, float]:
    """Measure the accuracy on scenes: shares of correct scenes or objects, at :data:`SCORE_THRESHOLD`.

    Returns:
        ``exact_scene`` (the multiset of shape and color is correct), ``count`` (of objects, per scene), ``objects``
        (true objects with a detection whose center is nearest and within two pixels), among those ``shape`` and
        ``color``, ``box_iou`` (mean), and ``confident``: exact scenes if only scores above 0.9 count.
    """
    images = torch.from_numpy(render(scenes, detector.size)).permute(0, 3, 1, 2).float() / 127.5 - 1
    candidates = detector.detect(images)
    detected = [[d for d in detections if d.score > SCORE_THRESHOLD] for detections in candidates]
    confident = [[d for d in detections if d.score > 0.9] for detections in candidates]
    matches = [
        (shape, _nearest(shape_box(shape), detections, detector.size))
        for scene, detections in zip(scenes, detected, strict=True)
        for shape in scene.shapes
    ]
    hits = [(shape, detection) for shape, detection in matches if detection is not None]
    return {
        "exact_scene": _mean([_is_exact(s, d) for s, d in zip(scenes, detected, strict=True)]),
        "confident": _mean([_is_exact(s, d) for s, d in zip(scenes, confident, strict=True)]),
        "count": _mean([len(s.shapes) == len(d) for s, d in zip(scenes, detected, strict=True)]),
        "objects": len(hits) / len(matches),
        "shape": _mean([shape.kind == detection.name for shape, detection in hits]),
        "color": _mean([shape.color == detection.color for shape, detection in hits]),
        "box_iou": _mean([_overlap(shape_box(s), d.box, detector.size) for s, d in hits]),
    }


def _is_exact(scene: Scene, detections: Sequence[Detection]) -> bool:
    return sorted((s.kind, s.color) for s in scene.shapes) == sorted((d.name, d.color) for d in detections)


def _nearest(box: Sequence[float], detections: Sequence[Detection], size: int) -> Detection | None:
    def distance(detection: Detection) -> float:
        pairs = ((0, 2), (1, 3))
        return max(abs((box[a] + box[b]) * size - detection.box[a] - detection.box[b]) / 2 for a, b in pairs)

    best = min(detections, key=distance, default=None)
    return best if best is not None and distance(best) <= 2 else None


def _overlap(box: Sequence[float], other: Sequence[float], size: int) -> float:
    box = [value * size for value in box]
    width = max(0.0, min(box[2], other[2]) - max(box[0], other[0]))
    height = max(0.0, min(box[3], other[3]) - max(box[1], other[1]))
    areas = sum((b[2] - b[0]) * (b[3] - b[1]) for b in (box, other))
    return width * height / (areas - width * height)


def _mean(values: Sequence[bool | float]) -> float:
    return float(np.mean(values)) if len(values) else 0.0
