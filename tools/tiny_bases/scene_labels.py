"""What a scene or a sentence says, as labels: the supervision of the understanding stage.

The world is closed: a kind that is not mentioned is absent. What a sentence leaves open ("circles": how
many?) has no label and no loss.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from reca.data.synthetic.scenes import COLORS, MAX_OBJECTS, RELATIONS, SHAPES, Scene, phrase, relation

UNKNOWN = -100
INVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
COLOR_NAMES = tuple(COLORS)


@dataclass(frozen=True)
class Facts:
    """Counts, shared colours, relations between kinds that stand alone, and where those stand."""

    counts: dict[str, int | None]
    """Kind -> how many; ``None``: some, the sentence does not say. Kinds left out are absent."""
    colors: dict[str, str] = field(default_factory=dict)
    relations: dict[tuple[str, str], str] = field(default_factory=dict)
    color_sets: dict[str, frozenset[str]] = field(default_factory=dict)
    """Kind -> all colours it appears in; a sentence that shares one colour says it too."""
    positions: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Kind -> centre as fractions of the image side; images only."""


@dataclass(frozen=True)
class Labels:
    """Facts of a batch over the S = 8 kinds; ``UNKNOWN`` marks what is not said."""

    counts: Tensor
    """(B, S) int64, 0..4"""
    colors: Tensor
    """(B, S) int64"""
    relations: Tensor
    """(B, S, S) int64: where the first kind stands, seen from the second"""
    color_sets: Tensor
    """(B, S, C) float: whether the kind appears in the colour; NaN where not said"""
    positions: Tensor
    """(B, S, 2) float; NaN where not said"""

    def rows(self, index: Tensor) -> "Labels":
        """The labels of some samples."""
        return Labels(*(getattr(self, name)[index] for name in self.__dataclass_fields__))


def scene_facts(scene: Scene) -> Facts:
    """All there is to know about a scene."""
    groups = scene.groups()
    single = {kind: shapes[0] for kind, shapes in groups.items() if len(shapes) == 1}
    return Facts(
        counts={kind: len(shapes) for kind, shapes in groups.items()},
        colors={kind: shapes[0].color for kind, shapes in groups.items() if len({s.color for s in shapes}) == 1},
        relations={(a, b): relation(single[a], single[b]) for a in single for b in single if a != b},
        color_sets={kind: frozenset(shape.color for shape in shapes) for kind, shapes in groups.items()},
        positions={kind: (shape.x, shape.y) for kind, shape in single.items()},
    )


def random_statement(rng: random.Random) -> tuple[str, Facts]:
    """A sentence about a scene that nobody drew, and what it says; benchmark prompts are sentences of this kind."""
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
        where = rng.choice(RELATIONS)
        relations = {(first, second): where, (second, first): INVERSE[where]}
    parts = [phrase(kind, counts[kind], colors.get(kind)) for kind in kinds]
    if relations:
        parts[:2] = [f"{parts[0]} {relations[kinds[0], kinds[1]]} {parts[1]}"]
    return opening(rng) + " and ".join(parts), Facts(
        counts, colors, relations, {kind: frozenset({color}) for kind, color in colors.items()}
    )


def opening(rng: random.Random) -> str:
    """How half of all captions begin."""
    return "a photo of " if rng.random() < 0.5 else ""


def labels(facts: Sequence[Facts]) -> Labels:
    """Facts as tensors."""
    size, slots = len(facts), len(SHAPES)
    counts = torch.zeros(size, slots, dtype=torch.long)
    colors = torch.full((size, slots), UNKNOWN)
    relations = torch.full((size, slots, slots), UNKNOWN)
    color_sets = torch.zeros(size, slots, len(COLOR_NAMES))
    positions = torch.full((size, slots, 2), float("nan"))
    slot = {kind: number for number, kind in enumerate(SHAPES)}
    for row, fact in enumerate(facts):
        for kind, count in fact.counts.items():
            counts[row, slot[kind]] = UNKNOWN if count is None else count
            color_sets[row, slot[kind]] = float("nan")
        for kind, color in fact.colors.items():
            colors[row, slot[kind]] = COLOR_NAMES.index(color)
        for kind, several in fact.color_sets.items():
            color_sets[row, slot[kind]] = torch.tensor([float(color in several) for color in COLOR_NAMES])
        for (first, second), where in fact.relations.items():
            relations[row, slot[first], slot[second]] = RELATIONS.index(where)
        for kind, centre in fact.positions.items():
            positions[row, slot[kind]] = torch.tensor(centre)
    return Labels(counts, colors, relations, color_sets, positions)


@dataclass(frozen=True)
class Tags:
    """What stands in each patch of an image: supervision for the vision tower (B, patches)."""

    present: Tensor
    kinds: Tensor
    colors: Tensor
    offsets: Tensor
    """(B, patches, 2): the centre within its patch, 0..1; NaN where none"""

    def rows(self, index: Tensor) -> "Tags":
        """The tags of some samples."""
        return Tags(self.present[index], self.kinds[index], self.colors[index], self.offsets[index])


def patch_tags(scenes: Sequence[Scene], grid: int) -> Tags:
    """Which patch of a ``grid`` x ``grid`` tiling holds a shape's centre, and which shape."""
    present = torch.zeros(len(scenes), grid * grid)
    kinds = torch.full((len(scenes), grid * grid), UNKNOWN)
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
    return Tags(present, kinds, colors, offsets)
