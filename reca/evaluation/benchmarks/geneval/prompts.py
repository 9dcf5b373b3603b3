"""Generator of GenEval's 553 prompts: the same bytes as the files that its authors ship.

After djghosh13/geneval@af4902f ``create_prompts.py`` (MIT), re-implemented with the same random draws in the same
order, and compared with the digests of the shipped files (``tests/golden/geneval/prompts.json``).
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from reca.evaluation.geneval_rules import COLORS

SEED, PER_TASK = 43, 100
PROMPTS = 553
IMAGES_PER_PROMPT = 4
"""The official number; BAGEL and RecA use 12."""
RELATIONS = ("left of", "right of", "above", "below")
NUMBERS = {2: "two", 3: "three", 4: "four"}
OBJECTS = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow",
    "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee",
    "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard",
    "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich",
    "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed",
    "dining table", "toilet", "tv", "laptop", "computer mouse", "tv remote", "computer keyboard", "cell phone",
    "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear",
    "hair drier", "toothbrush",
)  # fmt: skip
"""COCO's 80 classes in COCO's order, with GenEval's names: a detector's classes are matched by index, not by name."""
_NOT_PEOPLE = OBJECTS[1:]
"""Classes of prompts with colours."""

Entry = dict[str, Any]


def generate(seed: int = SEED, per_task: int = PER_TASK) -> list[Entry]:
    """Return the prompts with their clauses; equal prompts appear once.

    Args:
        seed: Seed of NumPy's default generator; 43 gives the published prompts.
        per_task: Prompts drawn for each of the five drawn tasks; 100 gives the published ones.
    """
    entries: dict[str, Entry] = {}
    for entry in _draw(np.random.default_rng(seed), per_task):
        entries.setdefault(entry["tag"] + entry["prompt"], entry)
    return list(entries.values())


def _draw(rng: np.random.Generator, per_task: int) -> Iterator[Entry]:
    """Yield all draws in the original's order: a missing draw would change all later prompts."""
    for index in rng.choice(len(OBJECTS), size=len(OBJECTS), replace=False):
        yield _entry("single_object", [_clause(OBJECTS[index])], _with_article(OBJECTS[index]))
    for _ in range(per_task):
        a, b = (OBJECTS[index] for index in rng.choice(len(OBJECTS), size=2, replace=False))
        yield _entry("two_object", [_clause(a), _clause(b)], f"{_with_article(a)} and {_with_article(b)}")
    for _ in range(per_task):
        name = OBJECTS[rng.choice(len(OBJECTS))]
        count = int(rng.integers(2, 4, endpoint=True))
        too_many = [_clause(name, count + 1)]
        yield _entry("counting", [_clause(name, count)], f"{NUMBERS[count]} {_plural(name)}", too_many)
    for _ in range(per_task):
        name, color = _NOT_PEOPLE[rng.choice(len(_NOT_PEOPLE))], COLORS[rng.choice(len(COLORS))]
        yield _entry("colors", [_clause(name, color=color)], f"{_with_article(color)} {name}")
    for _ in range(per_task):
        a, b = (OBJECTS[index] for index in rng.choice(len(OBJECTS), size=2, replace=False))
        relation = RELATIONS[rng.choice(len(RELATIONS))]
        clauses = [_clause(b), _clause(a, position=[relation, 0])]
        yield _entry("position", clauses, f"{_with_article(a)} {relation} {_with_article(b)}")
    for _ in range(per_task):
        names = [_NOT_PEOPLE[index] for index in rng.choice(len(_NOT_PEOPLE), size=2, replace=False)]
        colors = [COLORS[index] for index in rng.choice(len(COLORS), size=2, replace=False)]
        pairs = list(zip(names, colors, strict=True))
        text = " and ".join(f"{_with_article(color)} {name}" for name, color in pairs)
        yield _entry("color_attr", [_clause(name, color=color) for name, color in pairs], text)


def _clause(name: str, count: int = 1, **conditions: Any) -> Entry:
    return {"class": name, "count": count, **conditions}


def _entry(tag: str, include: list[Entry], text: str, exclude: list[Entry] | None = None) -> Entry:
    excluded = {"exclude": exclude} if exclude else {}
    return {"tag": tag, "include": include, **excluded, "prompt": f"a photo of {text}"}


def _with_article(word: str) -> str:
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def _plural(word: str) -> str:
    return f"{word}es" if word.endswith("s") else f"{word}s"
