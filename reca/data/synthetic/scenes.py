"""Rendered scenes of coloured shapes with exact ground truth.

A scene has one to four anti-aliased shapes in GenEval's colours on a plain background. It is a pure function of
``(seed, index)``, so a data set is defined by its seed and size. Every scene has GenEval metadata, a full caption, a
*sparse* caption (like web alt-texts: it names objects, seldom colours, very seldom positions) and question-answer
pairs.
"""

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

SHAPES = ("circle", "square", "diamond", "triangle", "cross", "ring", "bar", "frame")
COLORS: dict[str, tuple[int, int, int]] = {  # GenEval's names without black and white, which our backgrounds hide
    "red": (220, 40, 40),
    "orange": (245, 140, 30),
    "yellow": (240, 225, 40),
    "green": (40, 165, 60),
    "blue": (40, 80, 225),
    "purple": (135, 45, 165),
    "pink": (250, 150, 205),
    "brown": (125, 75, 40),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "light": (240, 240, 236),
    "grey": (128, 130, 134),
    "dark": (22, 22, 28),
}
RELATIONS = ("left of", "right of", "above", "below")
NUMBERS = ("zero", "one", "two", "three", "four")
MAX_OBJECTS = 4
IRREGULAR = {
    "deer": "deer", "fish": "fish", "mouse": "mice", "potato": "potatoes", "scissors": "scissors", "sheep": "sheep",
    "tomato": "tomatoes",
}  # fmt: skip
"""Irregular plurals of nouns in collages (reca/data/synthetic/collages.py)."""
QUESTION_KINDS = ("color", "count", "relation", "shape", "existence")
QuestionKind = Literal["color", "count", "relation", "shape", "existence"]

# Lengths are fractions of the image side. Centres of two shapes differ by at least MIN_GAP along x or y
# (Chebyshev distance), so shapes never overlap and each 1/4-image cell holds at most one centre.
MARGIN, MIN_GAP, MIN_RADIUS, MAX_RADIUS = 4 / 24, 7.8 / 24, 3.3 / 24, 3.9 / 24


@dataclass(frozen=True, slots=True)
class Shape:
    """One shape; ``x``, ``y`` (centre, from the top left) and ``radius`` are fractions of the image side.

    In collages ``kind`` is the object's noun, and ``color`` is empty because photographs have no colour label.
    """

    kind: str
    color: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True, slots=True)
class Scene:
    """Shapes on a background whose brightness is shifted by ``shade`` (fraction of full scale)."""

    shapes: tuple[Shape, ...]
    background: str
    shade: float

    def groups(self) -> dict[str, list[Shape]]:
        """Return the shapes by kind, in order of first appearance."""
        groups: dict[str, list[Shape]] = {}
        for shape in self.shapes:
            groups.setdefault(shape.kind, []).append(shape)
        return groups


@dataclass(frozen=True, slots=True)
class SceneQuestion:
    """A question about one scene, its one- or two-word answer, and its kind."""

    kind: QuestionKind
    text: str
    answer: str


def sample_scene(seed: int, index: int) -> Scene:
    """Sample scene ``index`` of the data set ``seed``, deterministically."""
    rng = random.Random(f"scene-{seed}-{index}")
    count = rng.choice([1, 2, 2, 3, 3, 4, 4])
    centres = sample_centers(rng, count)
    # Two scenes in five repeat one kind, so that counts above one are common enough to learn.
    repeat, kind, color, one_color = (
        rng.random() < 0.4,
        rng.choice(SHAPES),
        rng.choice(list(COLORS)),
        rng.random() < 0.5,
    )
    shapes = []
    for number, (x, y) in enumerate(centres):
        odd_one_out = number == count - 1 and count > 2 and rng.random() < 0.3
        shapes.append(
            Shape(
                kind=kind if repeat and not odd_one_out else rng.choice(SHAPES),
                color=color if repeat and one_color else rng.choice(list(COLORS)),
                x=x,
                y=y,
                radius=rng.uniform(MIN_RADIUS, MAX_RADIUS),
            )
        )
    return Scene(tuple(shapes), rng.choice(list(BACKGROUNDS)), rng.uniform(-0.03, 0.03))


def sample_centers(rng: random.Random, count: int) -> list[tuple[float, float]]:
    """Sample centres ``MIN_GAP`` apart and ``MARGIN`` from the edges, as fractions of the image side."""
    while True:
        centres: list[tuple[float, float]] = []
        for _ in range(40):
            x, y = rng.uniform(MARGIN, 1 - MARGIN), rng.uniform(MARGIN, 1 - MARGIN)
            if all(max(abs(x - a), abs(y - b)) >= MIN_GAP for a, b in centres):
                centres.append((x, y))
            if len(centres) == count:
                return centres


def signed_distance(kind: str, x: NDArray[np.floating[Any]], y: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    """Return the distance to the outline of a shape of radius 1 at the origin: negative inside, ``y`` pointing down."""
    ax, ay = np.abs(x), np.abs(y)
    radius = np.hypot(x, y)
    match kind:
        case "circle":
            return radius - 0.95
        case "square":
            return np.maximum(ax, ay) - 0.85
        case "diamond":
            return (ax + ay - 1.1) * np.sqrt(0.5, dtype=np.float32)
        case "triangle":
            return np.maximum(y - 0.8, (1.8 * ax - (y + 1)) / 2.06)
        case "cross":
            return np.minimum(np.maximum(ax - 1, ay - 0.33), np.maximum(ax - 0.33, ay - 1))
        case "ring":
            return np.abs(radius - 0.72) - 0.27
        case "bar":
            return np.maximum(ax - 1, ay - 0.42)
        case "frame":
            return np.abs(np.maximum(ax, ay) - 0.7) - 0.22
    raise ValueError(f"unknown shape {kind!r}; known: {', '.join(SHAPES)}")


def render(
    scenes: Sequence[Scene],
    size: int = 24,
    colors: Mapping[str, tuple[int, int, int]] = COLORS,
    backgrounds: Mapping[str, tuple[int, int, int]] = BACKGROUNDS,
) -> NDArray[np.uint8]:
    """Draw scenes, anti-aliased over one pixel: (N,) scenes -> (N, size, size, 3) RGB.

    Other ``colors`` and ``backgrounds`` draw other views of the scene, such as its outlines.
    """
    grid = (np.arange(size, dtype=np.float32) + 0.5) / size
    image = np.empty((len(scenes), size, size, 3), np.float32)
    for number, scene in enumerate(scenes):
        image[number] = np.clip(np.array(backgrounds[scene.background]) / 255 + scene.shade, 0, 1)
    # All shapes of a kind are drawn at once; shapes never overlap, so the order does not matter.
    for kind in SHAPES:
        owners = [(n, s) for n, scene in enumerate(scenes) for s in scene.shapes if s.kind == kind]
        if not owners:
            continue
        rows = np.array([n for n, _ in owners])
        x, y, radius = np.array([(s.x, s.y, s.radius) for _, s in owners], np.float32).T[:, :, None, None]
        distance = signed_distance(kind, (grid[None, None, :] - x) / radius, (grid[None, :, None] - y) / radius)
        alpha = np.clip(0.5 - distance * radius * size, 0, 1)[..., None]
        color = np.array([colors[s.color] for _, s in owners], np.float32)[:, None, None] / 255
        for slot in range(MAX_OBJECTS):  # a scene may own several shapes of this kind: blend its k-th ones together
            rank = _rank(rows) == slot
            image[rows[rank]] += alpha[rank] * (color[rank] - image[rows[rank]])
    return np.round(image * 255).astype(np.uint8)


def _rank(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the number of equal entries before each entry of a sorted array."""
    return np.arange(len(rows)) - np.searchsorted(rows, rows)


def relation(first: Shape, second: Shape) -> str:
    """Return the position of ``first`` relative to ``second``, along the axis on which they are further apart."""
    dx, dy = first.x - second.x, first.y - second.y
    if abs(dx) >= abs(dy):
        return "left of" if dx < 0 else "right of"
    return "above" if dy < 0 else "below"


def plural(noun: str) -> str:
    """Return the plural of a noun; only its last word changes."""
    *before, last = noun.split()
    if last in IRREGULAR:
        return " ".join([*before, IRREGULAR[last]])
    if last[-1] == "y" and last[-2:-1] not in tuple("aeiou"):
        return f"{noun[:-1]}ies"
    return noun + ("es" if last.endswith(("s", "x", "ch", "sh")) else "s")


def article(noun: str) -> str:
    """Return ``a`` or ``an`` for the following word."""
    return "an" if noun[0] in "aeiou" else "a"


def phrase(kind: str, count: int | None = 1, color: str | None = None) -> str:
    """Return ``a red circle``, ``two squares`` or ``circles`` (``count=None``: an unstated number above one)."""
    words = ([color] if color else []) + [kind if count == 1 else plural(kind)]
    if count is None:
        return " ".join(words)
    return " ".join([article(words[0]) if count == 1 else NUMBERS[count], *words])


def _shared_color(shapes: Iterable[Shape]) -> str | None:
    colors = {shape.color for shape in shapes}
    return colors.pop() if len(colors) == 1 else None


def full_caption(scene: Scene, rng: random.Random) -> str:
    """Name every kind with its count, its colour if shared, and one relation between two single shapes."""
    groups = list(scene.groups().items())
    rng.shuffle(groups)
    groups.sort(key=lambda group: len(group[1]) > 1)  # the single ones first: only they can be related
    parts = [phrase(kind, len(shapes), _shared_color(shapes)) for kind, shapes in groups]
    if len(groups) > 1 and len(groups[0][1]) == len(groups[1][1]) == 1:
        parts[:2] = [f"{parts[0]} {relation(groups[0][1][0], groups[1][1][0])} {parts[1]}"]
    return " and ".join(parts)


def sparse_caption(
    scene: Scene,
    rng: random.Random,
    mention: float = 0.6,
    color: float = 0.15,
    count: float = 0.2,
    relate: float = 0.08,
) -> str:
    """Write a caption that omits most facts; the numbers are the probabilities of mentioning a fact."""
    groups = list(scene.groups().items())
    rng.shuffle(groups)
    mentioned = [group for group in groups if rng.random() < mention][:3] or groups[:1]
    parts = []
    for kind, shapes in mentioned:
        shared = _shared_color(shapes) if rng.random() < color else None
        number = 1 if len(shapes) == 1 else len(shapes) if rng.random() < count else None
        parts.append(phrase(kind, number, shared))
    if len(mentioned) > 1 and len(mentioned[0][1]) == len(mentioned[1][1]) == 1 and rng.random() < relate:
        parts[:2] = [f"{parts[0]} {relation(mentioned[0][1][0], mentioned[1][1][0])} {parts[1]}"]
    return " and ".join(parts)


def questions(scene: Scene, rng: random.Random, kinds: Sequence[str] = SHAPES) -> list[SceneQuestion]:
    """Sample one question of every kind that the scene can answer; questions about absent shapes name ``kinds``."""
    groups = scene.groups()
    single = [kind for kind, shapes in groups.items() if len(shapes) == 1]
    sampled = [_existence_question(scene, rng, kinds), _count_question(groups, rng, kinds)]
    plain = [kind for kind, shapes in groups.items() if _shared_color(shapes)]
    if plain:
        kind = rng.choice(plain)
        sampled.append(SceneQuestion("color", f"what color is the {kind}", groups[kind][0].color))
    if len(single) > 1:
        first, second = rng.sample(single, 2)
        where = relation(groups[first][0], groups[second][0])
        sampled.append(SceneQuestion("relation", f"where is the {first} relative to the {second}", where))
    kinds_of: dict[str, set[str]] = {}
    for shape in scene.shapes:
        kinds_of.setdefault(shape.color, set()).add(shape.kind)
    unique = [color for color, colored in kinds_of.items() if color and len(colored) == 1]
    if unique:
        color = rng.choice(unique)
        sampled.append(SceneQuestion("shape", f"what shape is {color}", next(iter(kinds_of[color]))))
    return sampled


def _count_question(groups: dict[str, list[Shape]], rng: random.Random, kinds: Sequence[str]) -> SceneQuestion:
    kind = rng.choice(list(groups)) if rng.random() < 0.8 else rng.choice(kinds)
    return SceneQuestion("count", f"how many {plural(kind)} are there", NUMBERS[len(groups.get(kind, []))])


def _existence_question(scene: Scene, rng: random.Random, kinds: Sequence[str]) -> SceneQuestion:
    shape = rng.choice(scene.shapes)
    kind, color = shape.kind, shape.color
    if rng.random() < 0.5:  # a near miss: one of the two words is changed
        recolor = rng.random() < 0.7 and color
        kind, color = (kind, rng.choice(list(COLORS))) if recolor else (rng.choice(kinds), color)
    present = any((s.kind, s.color) == (kind, color) for s in scene.shapes)
    return SceneQuestion("existence", f"is there {phrase(kind, 1, color)}", "yes" if present else "no")


def metadata(scene: Scene) -> dict[str, Any]:
    """Describe the scene as GenEval metadata: one ``include`` clause per kind, one ``exclude`` clause per count.

    A clause has ``color`` if all shapes of the kind share it, and ``position`` (relation, index of the other clause) if
    both kinds have a single shape. An image is correct if it shows these kinds, counts, shared colours and relations,
    and no more shapes of the same kinds.
    """
    include: list[dict[str, Any]] = []
    last_single: tuple[int, Shape] | None = None
    for index, (kind, shapes) in enumerate(scene.groups().items()):
        clause: dict[str, Any] = {"class": kind, "count": len(shapes)}
        if color := _shared_color(shapes):
            clause["color"] = color
        if len(shapes) == 1:
            if last_single is not None:
                clause["position"] = [relation(shapes[0], last_single[1]), last_single[0]]
            last_single = (index, shapes[0])
        include.append(clause)
    exclude = [{"class": clause["class"], "count": clause["count"] + 1} for clause in include]
    return {"tag": "scene", "include": include, "exclude": exclude}


def benchmark_prompts(seed: int, per_category: int) -> list[dict[str, Any]]:
    """Sample prompts of GenEval's six categories over our shapes, in GenEval's metadata format and wording."""
    rng = random.Random(f"prompts-{seed}")
    prompts: list[dict[str, Any]] = []

    def add(tag: str, text: str, include: list[dict[str, Any]], exclude: list[dict[str, Any]] | None = None) -> None:
        entry = {"tag": tag, "include": include, **({"exclude": exclude} if exclude else {})}
        prompts.append({**entry, "prompt": f"a photo of {text}"})

    for _ in range(per_category):
        kind = rng.choice(SHAPES)
        add("single_object", phrase(kind), [{"class": kind, "count": 1}])
    for _ in range(per_category):
        a, b = rng.sample(SHAPES, 2)
        add("two_object", f"{phrase(a)} and {phrase(b)}", [{"class": a, "count": 1}, {"class": b, "count": 1}])
    for _ in range(per_category):
        kind, count = rng.choice(SHAPES), rng.choice([2, 3, 4])
        more = [{"class": kind, "count": count + 1}]
        add("counting", phrase(kind, count), [{"class": kind, "count": count}], more)
    for _ in range(per_category):
        kind, color = rng.choice(SHAPES), rng.choice(list(COLORS))
        add("colors", phrase(kind, 1, color), [{"class": kind, "count": 1, "color": color}])
    for _ in range(per_category):
        (a, b), where = rng.sample(SHAPES, 2), rng.choice(RELATIONS)
        clauses = [{"class": b, "count": 1}, {"class": a, "count": 1, "position": [where, 0]}]
        add("position", f"{phrase(a)} {where} {phrase(b)}", clauses)
    for _ in range(per_category):
        (a, b), (c, d) = rng.sample(SHAPES, 2), rng.sample(list(COLORS), 2)
        clauses = [{"class": a, "count": 1, "color": c}, {"class": b, "count": 1, "color": d}]
        add("color_attr", f"{phrase(a, 1, c)} and {phrase(b, 1, d)}", clauses)
    return prompts
