"""Trains the scene detector, the judge of the rendered-scenes benchmark, and measures it on held-out scenes.

Its scenes come from seeds of its own (:data:`TRAIN_SEED`, :data:`HELD_OUT_SEED`), so it never sees a scene
that the model is trained or measured on. A judge must not fall for what models draw instead of shapes, so
some inputs are noise or scrambled scenes, on which the right answer is "nothing here".
"""

import time
from collections.abc import Callable, Sequence
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
from tools.tiny_bases.detector_card import model_card

TRAIN_SEED, HELD_OUT_SEED = 110, 111
NUM_TRAIN, NUM_HELD_OUT = 40_000, 4_000
BATCH_SIZE, LEARNING_RATE, WARMUP = 96, 2e-3, 100
NEGATIVES, RECONSTRUCTED = 0.125, 0.3
"""Shares of a batch that show no shape at all, and that pass through an image tokenizer when one is given."""
SCORE_THRESHOLD = 0.3
IMAGE_SIZE = 24

Reconstruct = Callable[[Tensor], Tensor]
Reporter = Callable[[int, str], None]


@dataclass(frozen=True)
class SceneBatch:
    """Rendered scenes and where their shapes are; ``slot`` runs over MAX_OBJECTS, unused ones have ``valid`` False."""

    images: Tensor
    """(N, 3, S, S) uint8"""
    valid: Tensor
    """(N, slot) bool"""
    cell: Tensor
    """Heat-map cell of each centre, row * width + column, (N, slot) int64."""
    name: Tensor
    """(N, slot) int64, index into SHAPES."""
    color: Tensor
    """(N, slot) int64, index into COLORS."""
    edges: Tensor
    """Pixels from the cell's centre to the box's left, top, right, bottom, (N, slot, 4)."""

    def pick(self, rows: Tensor) -> "SceneBatch":
        """The scenes at ``rows``."""
        return SceneBatch(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))


def train_detector(
    out: Path,
    seed: int = 0,
    steps: int = 2500,
    progress: Reporter | None = None,
    reconstruct: Reconstruct | None = None,
) -> dict[str, float]:
    """Train, measure on held-out scenes, and write weights, ``card.json`` and ``README.md`` to ``out``.

    Args:
        out: Folder to replace.
        seed: Of the weights, the batch order and the augmentation.
        steps: Optimizer steps with :data:`BATCH_SIZE` images each.
        progress: Called with the number of finished steps and a text.
        reconstruct: Maps images (B, 3, S, S) in [-1, 1] to what an image tokenizer makes of them; a share of the
            inputs goes through it, so that the detector knows the style of generated images.

    Returns:
        The held-out accuracy (:func:`measure`), as it stands in the card.
    """
    began = time.monotonic()
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    scenes = scene_batch([sample_scene(TRAIN_SEED, index) for index in range(NUM_TRAIN)])
    detector = SceneDetector(SHAPES, tuple(COLORS), IMAGE_SIZE).train()
    optimizer = torch.optim.AdamW(detector.parameters(), LEARNING_RATE, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / WARMUP) * (1 - step / steps) + 0.005
    )
    for step in range(steps):
        batch = scenes.pick(torch.randint(NUM_TRAIN, (BATCH_SIZE,), generator=generator))
        images, valid = augment(batch, generator, reconstruct)
        loss = detection_loss(detector(images), batch, valid)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if progress is not None:
            progress(step + 1, f"loss {loss.item():.3f}")
    seconds = time.monotonic() - began
    held_out = [sample_scene(HELD_OUT_SEED, index) for index in range(NUM_HELD_OUT)]
    accuracy = measure(detector, held_out, reconstruct=None)
    tokenized = measure(detector, held_out, reconstruct=reconstruct) if reconstruct else None
    with atomic_folder(out) as folder:
        detector.save(folder)
        card = {
            "model": "scene_detector",
            "sha256": file_digest(folder / WEIGHTS),
            "parameters": sum(p.numel() for p in detector.parameters()),
            "accuracy": accuracy,
            "accuracy_after_tokenizer": tokenized,
            "score_threshold": SCORE_THRESHOLD,
            "recipe": {
                "seed": seed,
                "steps": steps,
                "batch_size": BATCH_SIZE,
                "learning_rate": LEARNING_RATE,
                "negatives": NEGATIVES,
                "reconstructed": RECONSTRUCTED if reconstruct else 0.0,
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
    """Render scenes and lay out what the detector shall say about them."""
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
            middle = ((x + 0.5) * STRIDE, (y + 0.5) * STRIDE)
            valid[row, slot], cell[row, slot] = True, y * side + x
            name[row, slot], color[row, slot] = SHAPES.index(shape.kind), colors.index(shape.color)
            edges[row, slot] = torch.tensor([middle[0] - left, middle[1] - top, right - middle[0], bottom - middle[1]])
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


def augment(batch: SceneBatch, rng: torch.Generator, reconstruct: Reconstruct | None) -> tuple[Tensor, Tensor]:
    """Images as a model might draw them, and which objects are still there.

    Returns:
        Images (B, 3, S, S) in [-1, 1], and ``batch.valid`` with all slots off where the image shows no shape.
    """
    images = batch.images.float() / 127.5 - 1
    count, _, size, _ = images.shape

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=rng)

    if reconstruct is not None:
        chosen = uniform(count) < RECONSTRUCTED
        images[chosen] = reconstruct(images[chosen])
    images = _blur(images, uniform(count, 1, 1, 1) * (uniform(count, 1, 1, 1) < 0.3))
    gain, shift = 1 + 0.1 * (uniform(count, 3, 1, 1) - 0.5), 0.12 * (uniform(count, 3, 1, 1) - 0.5)
    # A tokenizer decodes patch by patch and errs by patch.
    patches = 0.2 * uniform(count, 1, 1, 1) * (uniform(count, 3, size // 4, size // 4) - 0.5)
    images = images * gain + shift + functional.interpolate(patches, (size, size))
    absent = torch.arange(count) < round(NEGATIVES * count)
    images[absent] = _without_shapes(images[absent], rng)
    noise = torch.randn(images.shape, generator=rng) * uniform(count, 1, 1, 1) * 0.12
    return (images + noise).clamp(-1, 1), batch.valid & ~absent[:, None]


def _blur(images: Tensor, strength: Tensor) -> Tensor:
    """Mix each image with its 3 x 3 binomial blur; ``strength`` (B, 1, 1, 1) from 0 (none) to 1 (all)."""
    line = torch.tensor([0.25, 0.5, 0.25])
    kernel = (line[:, None] * line[None, :]).expand(3, 1, 3, 3)
    padded = functional.pad(images, (1, 1, 1, 1), mode="replicate")
    return images + strength * (functional.conv2d(padded, kernel, groups=3) - images)


def _without_shapes(images: Tensor, rng: torch.Generator) -> Tensor:
    """What bad samples look like: scrambled patches, coarse or fine noise, an empty ground; (B, 3, S, S)."""
    result = images.clone()
    size = images.shape[-1]
    for row in range(len(images)):
        match row % 4:
            case 0:  # the image's own 4 x 4 patches in another order
                patches = functional.unfold(images[row : row + 1], 4, stride=4)
                order = torch.randperm(patches.shape[-1], generator=rng)
                result[row] = functional.fold(patches[:, :, order], (size, size), 4, stride=4)[0]
            case 1:  # patches or clouds of random colours, two pixels to a third of the image wide
                cells = int(torch.randint(3, size // 2 + 1, (), generator=rng))
                coarse = torch.rand((1, 3, cells, cells), generator=rng) * 2 - 1
                mode = "bilinear" if torch.rand((), generator=rng) < 0.5 else "nearest"
                result[row] = functional.interpolate(coarse, (size, size), mode=mode)[0]
            case 2:  # fine noise on the image's own ground
                strength = torch.rand((), generator=rng)
                result[row] = images[row, :, :1, :1] + strength * torch.randn((3, size, size), generator=rng)
            case _:  # the ground alone
                result[row] = images[row, :, :1, :1]
    return result


def detection_loss(output: DetectorOutput, batch: SceneBatch, valid: Tensor) -> Tensor:
    """Where (weighted cross-entropy per object), which shape, which colour, and the box (smooth L1, pixels)."""
    row, slot = valid.nonzero().T
    cell = batch.cell[row, slot]
    heat = torch.zeros_like(output.heat).flatten(1)
    heat[row, cell] = 1
    heat = heat.view_as(output.heat)
    # The cells around a centre may fire as well (only the maximum counts), so errors there weigh next to nothing:
    # a centre on the corner of four cells then scores high in all of them instead of a quarter in each.
    near = (functional.max_pool2d(heat[:, None], 3, 1, 1)[:, 0] > heat).float()
    weight = 1 + 6 * heat - 0.97 * near
    objects = max(len(row), 1)
    where = functional.binary_cross_entropy_with_logits(output.heat, heat, weight, reduction="sum") / objects

    def at_centres(maps: Tensor) -> Tensor:
        return maps.flatten(2)[row, :, cell]

    which = functional.cross_entropy(at_centres(output.names), batch.name[row, slot])
    color = functional.cross_entropy(at_centres(output.colors), batch.color[row, slot])
    box = functional.smooth_l1_loss(at_centres(output.edges), batch.edges[row, slot])
    return where + which + color + box


def measure(
    detector: SceneDetector, scenes: Sequence[Scene], reconstruct: Reconstruct | None = None
) -> dict[str, float]:
    """Accuracy on scenes: shares of scenes or objects that are right, at :data:`SCORE_THRESHOLD`.

    Returns:
        ``exact_scene`` (the multiset of shape and colour is right), ``count`` (of objects, per scene), ``objects``
        (true objects with a detection whose centre is nearest and within two pixels), among those ``shape`` and
        ``color``, ``box_iou`` (mean), and ``confident``: exact scenes when only scores above 0.9 count.
    """
    images = torch.from_numpy(render(scenes, detector.size)).permute(0, 3, 1, 2).float() / 127.5 - 1
    if reconstruct is not None:
        images = torch.cat([reconstruct(part) for part in images.split(500)])
    found = detector.detect(images)
    kept = [[d for d in detections if d.score > SCORE_THRESHOLD] for detections in found]
    sure = [[d for d in detections if d.score > 0.9] for detections in found]
    matches = [
        (shape, _nearest(shape_box(shape), detections, detector.size))
        for scene, detections in zip(scenes, kept, strict=True)
        for shape in scene.shapes
    ]
    hits = [(shape, detection) for shape, detection in matches if detection is not None]
    return {
        "exact_scene": _mean([_same(s, d) for s, d in zip(scenes, kept, strict=True)]),
        "confident": _mean([_same(s, d) for s, d in zip(scenes, sure, strict=True)]),
        "count": _mean([len(s.shapes) == len(d) for s, d in zip(scenes, kept, strict=True)]),
        "objects": len(hits) / len(matches),
        "shape": _mean([shape.kind == detection.name for shape, detection in hits]),
        "color": _mean([shape.color == detection.color for shape, detection in hits]),
        "box_iou": _mean([_overlap(shape_box(s), d.box, detector.size) for s, d in hits]),
    }


def _same(scene: Scene, detections: Sequence[Detection]) -> bool:
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
