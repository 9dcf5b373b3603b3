"""ImgEdit-Bench's scoring rules, pure: from a judge's replies to the mean scores of 1-5.

After Ye et al., "ImgEdit" (arXiv 2505.20275; PKU-YuanGroup/ImgEdit@547185d, which carries no licence: nothing of it is
kept here), written anew from the rules and proven on what the original answers (``tests/golden/imgedit``).

The original has no overall score. Its leaderboard's is the plain mean of the nine types (*macro*), RecA's and lmms-
eval's the mean over items (*micro*); they differ by up to 0.1. Both are computed, neither is called simply "overall".
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
"""Edits of each type in the basic suite: 737. ``compose`` is "Hybrid" in the paper's table."""
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
"""What the judge scores for each type of edit, from 1 to 5."""
HARD_ITEMS = 47
"""Edits of the UGE suite, one score each."""

Rule = Literal["strict", "official"]


@dataclass(frozen=True)
class Summary:
    """Scores over many edits, 1..5."""

    types: Mapping[str, float]
    macro: float
    """Mean of the types' means: the leaderboard's overall."""
    micro: float
    """Mean over the items: RecA's overall."""
    expected: int
    scored: int

    @property
    def failed(self) -> int:
        """Edits whose reply could not be read."""
        return self.expected - self.scored


def read_official(reply: str) -> float | None:
    """The original's score of one reply: the mean of the numbers found, rounded to two digits; ``None`` without any.

    A line counts if and only if it splits on ": " into exactly two parts of which the second is all digits. So "4." and
    "4/5" and "**Name:** 4" are lost and the mean is of what is left; a digit behind "Brief reasoning: " counts, as does
    a 10.
    """
    numbers = []
    for line in reply.splitlines():
        parts = line.strip().split(": ")
        if len(parts) == 2 and parts[1].isdecimal():  # the original's isdigit also takes a "²", and dies of it
            numbers.append(int(parts[1]))
    return round(sum(numbers) / len(numbers), 2) if numbers else None


def read_strict(reply: str, edit_type: str) -> tuple[int, int, int] | None:
    """The three scores of one reply, by the names that its type of edit has; ``None`` unless all three are plain.

    Each must stand on a line of its own in any dress ("**Visual Quality:** 4/5", "- Visual Quality: 4 (good)"), be from
    1 to 5, and not be contradicted by another line.

    Raises:
        ValueError: There is no such type of edit.
    """
    if edit_type not in DIMENSIONS:
        raise ValueError(f"ImgEdit-Bench has no edit type {edit_type!r}; it has {', '.join(DIMENSIONS)}")
    first, second, third = (_named_score(reply, name) for name in DIMENSIONS[edit_type])
    return None if first is None or second is None or third is None else (first, second, third)


def read_hard(reply: str) -> int | None:
    """The one score of a reply in the UGE suite: "Score: n" with n from 1 to 5, also inside a line; no contradictions.

    The original's own example puts it behind the reasoning in the same line, where its script does not find it.
    """
    pattern = r"\bScore[^\w-]*?[:\uff1a][^\w-]*?(-?\d[\d.]*(?<!\.)(?:\s*/\s*\d+)?)"
    said = {re.sub(r"\s*/\s*5$", "", value) for value in re.findall(pattern, reply, re.IGNORECASE)}
    return int(value) if len(said) == 1 and (value := said.pop()) in ("1", "2", "3", "4", "5") else None


def _named_score(reply: str, name: str) -> int | None:
    pattern = rf"^\W*(?:\d\W+)?{re.escape(name)}\W*?[:\uff1a][^\w-]*([1-5])(?:\s*/\s*5)?(?:\s*\([^)]*\))?\W*$"
    found = set(re.findall(pattern, reply, re.IGNORECASE | re.MULTILINE))
    return int(found.pop()) if len(found) == 1 else None


def item_score(reply: str, edit_type: str, rule: Rule = "strict") -> float | None:
    """The score of one edit, 1..5; ``None`` where the reply cannot be read.

    Raises:
        ValueError: See :func:`read_strict`.
    """
    if rule == "official":
        return read_official(reply)
    scores = read_strict(reply, edit_type)
    return None if scores is None else sum(scores) / len(scores)


def summarise(items: Iterable[tuple[str, float | None]], rule: Rule = "strict") -> Summary:
    """Mean scores over many edits.

    Args:
        items: Type of edit and score of each; ``None`` is counted and in no mean.
        rule: ``official`` rounds the types' means to two digits before anything is made of them.

    Raises:
        ValueError: Nothing was scored.
    """
    by_type: dict[str, list[float]] = {}
    expected = 0
    for edit_type, score in items:
        expected += 1
        if score is not None:
            by_type.setdefault(edit_type, []).append(score)
    if not by_type:
        raise ValueError(f"none of {expected} replies could be read")
    means = {name: _mean(values) for name, values in by_type.items()}
    types = {name: round(value, 2) for name, value in means.items()} if rule == "official" else means
    flat = [score for values in by_type.values() for score in values]
    return Summary(types, macro=_mean(list(types.values())), micro=_mean(flat), expected=expected, scored=len(flat))


def overall_of_types(types: Mapping[str, float], counts: Mapping[str, int] = ITEMS) -> tuple[float, float]:
    """Macro and micro mean of published scores of the types.

    Raises:
        ValueError: A type has no count.
    """
    if unknown := types.keys() - counts.keys():
        raise ValueError(f"no number of items is known for {sorted(unknown)}")
    weight = sum(counts[name] for name in types)
    return _mean(list(types.values())), sum(score * counts[name] for name, score in types.items()) / weight


def hard_score(replies: Iterable[str], rule: Rule = "strict") -> tuple[float | None, int, int]:
    """Mean score of the UGE suite, replies, and how many of them could be read.

    The official rule is that of the basic suite, rounded to two digits: it loses the replies of its own example's form.
    """
    replies = list(replies)
    read = read_official if rule == "official" else read_hard
    scores = [score for reply in replies if (score := read(reply)) is not None]
    if not scores:
        return None, len(replies), 0
    return (round(_mean(scores), 2) if rule == "official" else _mean(scores)), len(replies), len(scores)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
