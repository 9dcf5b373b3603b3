"""Labels of scenes and sentences: the supervision of the understanding stages.

The world is closed: a kind that is not mentioned is absent. Facts that a sentence leaves open ("circles": how many?)
have no label and no loss.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from reca.data.synthetic.scenes import COLORS, MAX_OBJECTS, RELATIONS, SHAPES, Scene, phrase, relation

UNLABELED = -100
INVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
COLOR_NAMES = tuple(COLORS)


@dataclass(frozen=True)
class SceneFacts:
    """Counts, shared colors, and relations and positions of kinds that appear once."""

    counts: dict[str, int | None]
    """Kind -> count; ``None``: the sentence does not say how many. Kinds without an entry are absent."""
    colors: dict[str, str] = field(default_factory=dict)
    relations: dict[tuple[str, str], str] = field(default_factory=dict)
    color_sets: dict[str, frozenset[str]] = field(default_factory=dict)
    """Kind -> all its colors; also given by a sentence that names one shared color."""
    positions: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Kind -> center as fractions of the image side; images only."""


@dataclass(frozen=True)
class SceneLabels:
    """Facts of a batch over the S = 8 kinds of shapes; ``UNLABELED`` without a label."""

    counts: Tensor
    """(B, S) int64, 0..4"""
    colors: Tensor
    """(B, S) int64"""
    relations: Tensor
    """(B, S, S) int64: position of the first kind relative to the second"""
    color_sets: Tensor
    """(B, S, C) float: 1 if the kind appears in the color; NaN without a label"""
    positions: Tensor
    """(B, S, 2) float; NaN without a label"""

    def rows(self, index: Tensor) -> "SceneLabels":
        """Select samples."""
        return SceneLabels(*(getattr(self, name)[index] for name in self.__dataclass_fields__))


def scene_facts(scene: Scene) -> SceneFacts:
    """Return all facts of a scene."""
    groups = scene.groups()
    single = {kind: shapes[0] for kind, shapes in groups.items() if len(shapes) == 1}
    color_sets = {kind: frozenset(shape.color for shape in shapes) for kind, shapes in groups.items()}
    return SceneFacts(
        counts={kind: len(shapes) for kind, shapes in groups.items()},
        colors={kind: shapes[0].color for kind, shapes in groups.items() if len(color_sets[kind]) == 1},
        relations={(a, b): relation(single[a], single[b]) for a in single for b in single if a != b},
        color_sets=color_sets,
        positions={kind: (shape.x, shape.y) for kind, shape in single.items()},
    )


def random_statement(rng: random.Random) -> tuple[str, SceneFacts]:
    """Return a sentence about a scene that is not rendered, and its facts; benchmark prompts are of this kind."""
    kinds = rng.sample(SHAPES, rng.choice([1, 2, 2, 3]))
    counts: dict[str, int | None] = {}
    colors: dict[str, str] = {}
    for kind in kinds:
        counts[kind] = 1 if rng.random() < 0.65 else rng.choice([None, *range(2, MAX_OBJECTS + 1)])
        if rng.random() < 0.5:
            colors[kind] = rng.choice(COLOR_NAMES)
    relations: dict[tuple[str, str], str] = {}
    if len(kinds) > 1 and rng.random() < 0.6:
        first, second = kinds[:2]
        counts[first] = counts[second] = 1
        direction = rng.choice(RELATIONS)
        relations = {(first, second): direction, (second, first): INVERSE[direction]}
    parts = [phrase(kind, counts[kind], colors.get(kind)) for kind in kinds]
    if relations:
        parts[:2] = [f"{parts[0]} {relations[kinds[0], kinds[1]]} {parts[1]}"]
    color_sets = {kind: frozenset({color}) for kind, color in colors.items()}
    return caption_opening(rng) + " and ".join(parts), SceneFacts(counts, colors, relations, color_sets)


def caption_opening(rng: random.Random) -> str:
    """Return the opening of a caption; every second has none."""
    return "a photo of " if rng.random() < 0.5 else ""


def to_labels(facts: Sequence[SceneFacts]) -> SceneLabels:
    """Convert the facts of samples to tensors."""
    size, slots = len(facts), len(SHAPES)
    counts = torch.zeros(size, slots, dtype=torch.long)
    colors = torch.full((size, slots), UNLABELED)
    relations = torch.full((size, slots, slots), UNLABELED)
    color_sets = torch.zeros(size, slots, len(COLOR_NAMES))
    positions = torch.full((size, slots, 2), float("nan"))
    slot = {kind: number for number, kind in enumerate(SHAPES)}
    for row, sample in enumerate(facts):
        for kind, count in sample.counts.items():
            counts[row, slot[kind]] = UNLABELED if count is None else count
            color_sets[row, slot[kind]] = float("nan")
        for kind, color in sample.colors.items():
            colors[row, slot[kind]] = COLOR_NAMES.index(color)
        for kind, names in sample.color_sets.items():
            color_sets[row, slot[kind]] = torch.tensor([float(color in names) for color in COLOR_NAMES])
        for (first, second), direction in sample.relations.items():
            relations[row, slot[first], slot[second]] = RELATIONS.index(direction)
        for kind, center in sample.positions.items():
            positions[row, slot[kind]] = torch.tensor(center)
    return SceneLabels(counts, colors, relations, color_sets, positions)


@dataclass(frozen=True)
class PatchTags:
    """The shape centered in each patch of an image, if any: supervision of the vision tower, (B, patches)."""

    present: Tensor
    kinds: Tensor
    colors: Tensor
    offsets: Tensor
    """(B, patches, 2): the center within its patch, 0..1; NaN without a shape"""

    def rows(self, index: Tensor) -> "PatchTags":
        """Select samples."""
        return PatchTags(self.present[index], self.kinds[index], self.colors[index], self.offsets[index])


def patch_tags(scenes: Sequence[Scene], grid: int) -> PatchTags:
    """Tag the patches of a ``grid`` x ``grid`` tiling with the shapes centered in them."""
    present = torch.zeros(len(scenes), grid * grid)
    kinds = torch.full((len(scenes), grid * grid), UNLABELED)
    colors = kinds.clone()
    offsets = torch.full((len(scenes), grid * grid, 2), float("nan"))
    for row, scene in enumerate(scenes):
        for shape in scene.shapes:
            column, line = int(shape.x * grid), int(shape.y * grid)
            patch = line * grid + column
            present[row, patch] = 1
            kinds[row, patch] = SHAPES.index(shape.kind)
            colors[row, patch] = COLOR_NAMES.index(shape.color)
            offsets[row, patch] = torch.tensor([shape.x * grid - column, shape.y * grid - line])
    return PatchTags(present, kinds, colors, offsets)
