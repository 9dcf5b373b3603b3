"""ImgEdit-Bench's scoring rules, pure functions from a judge's replies to mean scores of 1-5.

After Ye et al., "ImgEdit" (arXiv 2505.20275; PKU-YuanGroup/ImgEdit@547185d, which carries no licence, so no text is
copied), written independently from the rules and proven on the original's answers (``tests/golden/imgedit``).

The original has no overall score. Its leaderboard's is the plain mean of the nine types (*macro*), RecA's and lmms-
eval's the mean over items (*micro*); they differ by up to 0.1. Both are computed, neither is called "overall".
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

ITEMS: Mapping[str, int] = MappingProxyType(
    {
        "extract": 117,
        "style": 100,
        "add": 95,
        "adjust": 94,
        "background": 94,
        "replace": 92,
        "remove": 86,
        "action": 36,
        "compose": 23,
    }
)
"""Number of edits by type in the basic suite, 737 in all. ``compose`` is "Hybrid" in the paper's table."""
DIMENSIONS: Mapping[str, tuple[str, str, str]] = MappingProxyType(
    {
        "replace": ("Prompt Compliance", "Visual Naturalness", "Physical & Detail Integrity"),
        "add": ("Prompt Compliance", "Visual Naturalness", "Physical & Detail Coherence"),
        "adjust": ("Prompt Compliance", "Visual Seamlessness", "Physical & Detail Fidelity"),
        "remove": ("Prompt Compliance", "Visual Naturalness", "Physical & Detail Integrity"),
        "style": ("Style Fidelity", "Content Preservation", "Rendering Quality"),
        "action": ("Action Fidelity", "Identity Preservation", "Visual & Anatomical Coherence"),
        "extract": ("Object Identity", "Mask Precision", "Visual Quality"),
        "background": ("Instruction Compliance", "Visual Seamlessness", "Physical Consistency"),
        "compose": ("Instruction Compliance", "Visual Naturalness", "Physical Consistency & Fine Detail"),
    }
)
"""Names of the judge's three scores, from 1 to 5, by type of edit."""

Rule = Literal["strict", "official"]


@dataclass(frozen=True)
class ImgeditSummary:
    """Scores over many edits, 1..5."""

    types: Mapping[str, float]
    macro: float
    """Mean of the types' means: the leaderboard's overall."""
    micro: float
    """Mean over the items: RecA's overall."""


def read_official(reply: str) -> float | None:
    """Return the original's score of a reply: the mean of its numbers, rounded to two digits; ``None`` without any.

    A line counts if and only if it splits on ": " into exactly two parts of which the second is all digits. So "4.",
    "4/5" and "**Name:** 4" are ignored and the mean is over the remaining numbers; a digit after "Brief reasoning: "
    counts, as does a 10.
    """
    numbers = []
    for line in reply.splitlines():
        parts = line.strip().split(": ")
        if len(parts) == 2 and parts[1].isdecimal():  # the original's isdigit also accepts "²", and int() then raises
            numbers.append(int(parts[1]))
    return round(sum(numbers) / len(numbers), 2) if numbers else None


def read_strict(reply: str, edit_type: str) -> tuple[int, int, int] | None:
    """Parse the three scores of a reply, by the names of its type of edit; ``None`` unless all three are clear.

    Each must be on a separate line in any markup ("**Visual Quality:** 4/5", "- Visual Quality: 4 (good)"), be from 1
    to 5, and not be contradicted by another line.

    Raises:
        ValueError: The type of edit does not exist.
    """
    if edit_type not in DIMENSIONS:
        raise ValueError(f"ImgEdit-Bench has no edit type {edit_type!r}; it has {', '.join(DIMENSIONS)}")
    first, second, third = (_named_score(reply, name) for name in DIMENSIONS[edit_type])
    return None if first is None or second is None or third is None else (first, second, third)


def _named_score(reply: str, name: str) -> int | None:
    pattern = rf"^\W*(?:\d\W+)?{re.escape(name)}\W*?[:\uff1a][^\w-]*([1-5])(?:\s*/\s*5)?(?:\s*\([^)]*\))?\W*$"
    scores = set(re.findall(pattern, reply, re.IGNORECASE | re.MULTILINE))
    return int(scores.pop()) if len(scores) == 1 else None


def item_score(reply: str, edit_type: str, rule: Rule = "strict") -> float | None:
    """Return the score of an edit, 1..5; ``None`` if the reply cannot be read."""
    if rule == "official":
        return read_official(reply)
    scores = read_strict(reply, edit_type)
    return None if scores is None else sum(scores) / len(scores)


def summarise(items: Iterable[tuple[str, float | None]], rule: Rule = "strict") -> ImgeditSummary:
    """Return the mean scores of many edits.

    Args:
        items: Types and scores of edits; ``None`` is in no mean.
        rule: ``official`` rounds the types' means to two digits before taking their mean.

    Raises:
        ValueError: No edit has a score.
    """
    by_type: dict[str, list[float]] = {}
    items = list(items)
    for edit_type, score in items:
        if score is not None:
            by_type.setdefault(edit_type, []).append(score)
    if not by_type:
        raise ValueError(f"none of {len(items)} replies could be read")
    means = {name: _mean(values) for name, values in by_type.items()}
    types = {name: round(value, 2) for name, value in means.items()} if rule == "official" else means
    flat = [score for values in by_type.values() for score in values]
    return ImgeditSummary(types, macro=_mean(list(types.values())), micro=_mean(flat))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
