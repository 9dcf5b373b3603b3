"""Edits of rendered scenes by instruction: one shape gets another colour or place, goes, or comes.

An edit names its shape by colour and kind, of which the scene has no second one, before or after.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from reca.data.synthetic.scenes import (
    COLORS,
    MARGIN,
    MAX_OBJECTS,
    MAX_RADIUS,
    MIN_GAP,
    MIN_RADIUS,
    SHAPES,
    Scene,
    Shape,
    phrase,
    relation,
    sample_scene,
)

Category = Literal["recolor", "remove", "add", "move"]
CATEGORIES: tuple[Category, ...] = ("recolor", "remove", "add", "move")
DIRECTIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
TRIES = 200


@dataclass(frozen=True)
class SceneEdit:
    """What an instruction asks for."""

    instruction: str
    rest: tuple[Shape, ...]
    """The shapes that must stay as they are."""
    before: Shape | None
    """The shape that changes or goes."""
    after: Shape | None
    """What becomes of it, or comes; its place is one of those that are right."""
    stays: bool = False
    """The changed shape must be where it was."""
    relation: tuple[str, int] | None = None
    """How the shape must stand to one of the rest."""

    def target(self, scene: Scene) -> Scene:
        """A scene that is right."""
        return replace(scene, shapes=(*self.rest, *([self.after] if self.after else [])))

    def metadata(self) -> dict[str, Any]:
        """What :func:`reca.evaluation.benchmarks.scene_editing.rules.evaluate_edit` asks for."""
        return {
            "rest": [[shape.kind, shape.color, shape.x, shape.y] for shape in self.rest],
            "before": None if self.before is None else [self.before.kind, self.before.color],
            "after": None if self.after is None else [self.after.kind, self.after.color],
            "place": [self.before.x, self.before.y] if self.stays and self.before else None,
            "relation": None if self.relation is None else list(self.relation),
        }


def sample_edits(base: int, category: Category, number: int) -> list[tuple[int, SceneEdit]]:
    """The first edits of a category that the scenes of seed ``base`` allow, with the number of each one's scene."""
    edits: list[tuple[int, SceneEdit]] = []
    index = 0
    while len(edits) < number:
        edit = make_edit(category, sample_scene(base, index), random.Random(f"edit-{category}-{base}-{index}"))
        if edit is not None:
            edits.append((index, edit))
        index += 1
    return edits


def make_edit(category: Category, scene: Scene, rng: random.Random) -> SceneEdit | None:
    """An edit of this scene; ``None`` where it allows none."""
    if category == "add":
        return _add(scene, rng)
    identities = [(shape.kind, shape.color) for shape in scene.shapes]
    unique = [shape for shape in scene.shapes if identities.count((shape.kind, shape.color)) == 1]
    if not unique or (category != "recolor" and len(unique) < 2):
        return None
    shape, *partners = rng.sample(unique, len(unique))
    rest = tuple(other for other in scene.shapes if other is not shape)
    name = f"the {shape.color} {shape.kind}"
    if category == "remove":
        return SceneEdit(f"remove {name}", rest, shape, None)
    if category == "recolor":
        color = rng.choice([color for color in COLORS if (shape.kind, color) not in identities])
        return SceneEdit(f"make {name} {color}", rest, shape, replace(shape, color=color), stays=True)
    return _move(shape, partners[0], rest, name, rng)


def _add(scene: Scene, rng: random.Random) -> SceneEdit | None:
    kinds = [kind for kind in SHAPES if kind not in scene.groups()]
    center = _free(scene.shapes, rng)
    if len(scene.shapes) == MAX_OBJECTS or center is None:
        return None
    shape = Shape(rng.choice(kinds), rng.choice(list(COLORS)), *center, rng.uniform(MIN_RADIUS, MAX_RADIUS))
    return SceneEdit(f"add {phrase(shape.kind, 1, shape.color)}", scene.shapes, None, shape)


def _move(shape: Shape, other: Shape, rest: tuple[Shape, ...], name: str, rng: random.Random) -> SceneEdit | None:
    x, y = shape.x - other.x, shape.y - other.y
    # Not where it is already, nor nearly so: GenEval's rule lets a diagonal be both next to and above.
    directions = [where for where, (dx, dy) in DIRECTIONS.items() if x * dx + y * dy <= abs(x * dy + y * dx) / 2]
    for where in rng.sample(directions, len(directions)):
        center = _free(rest, rng, partial(_stands, shape, other, where))
        if center is not None:
            moved_shape = replace(shape, x=center[0], y=center[1])
            instruction = f"move {name} {where} the {other.color} {other.kind}"
            return SceneEdit(instruction, rest, shape, moved_shape, relation=(where, rest.index(other)))
    return None


def _stands(shape: Shape, other: Shape, where: str, x: float, y: float) -> bool:
    return relation(replace(shape, x=x, y=y), other) == where


def _free(
    shapes: Sequence[Shape], rng: random.Random, fits: Callable[[float, float], bool] = lambda x, y: True
) -> tuple[float, float] | None:
    """A centre that keeps its distance from all shapes, if one is found soon."""
    for _ in range(TRIES):
        x, y = rng.uniform(MARGIN, 1 - MARGIN), rng.uniform(MARGIN, 1 - MARGIN)
        if fits(x, y) and all(max(abs(x - shape.x), abs(y - shape.y)) >= MIN_GAP for shape in shapes):
            return x, y
    return None
