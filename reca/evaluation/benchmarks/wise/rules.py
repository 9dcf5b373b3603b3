"""WISE's scoring rules, pure functions from a judge's replies to WiScore.

After Niu et al., "WISE" (arXiv 2503.07265; PKU-YuanGroup/WISE@eb51174, which carries no licence, so no text is copied),
written independently from the rules and proven on the original's answers (``tests/golden/wise``).

There are two benchmarks of that name. *Legacy* (the paper, and RecA's tables) has three scores of 0-2 per image;
*verified* (2026) one of 0-1. Their prompts, ranges, weights and judges differ, and so do their numbers.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

CATEGORIES = ("CULTURE", "TIME", "SPACE", "BIOLOGY", "PHYSICS", "CHEMISTRY")
PROMPTS = 1000

Rule = Literal["strict", "official"]


@dataclass(frozen=True)
class WiseVersion:
    """One of the two benchmarks."""

    name: str
    last_ids: tuple[int, ...]
    """Last prompt ids of the categories, in the order of :data:`CATEGORIES`; ids start at 1."""
    weights: tuple[float, ...]
    """Weights of the categories in the overall score; they add up to 1."""
    components: Mapping[str, float]
    """The judge's scores and their weights in WiScore."""
    highest: int
    """Best score of a component."""

    def category_of(self, prompt_id: int) -> str:
        """Return the category of a prompt.

        Raises:
            ValueError: The prompt does not exist.
        """
        if prompt_id >= 1:
            for name, last in zip(CATEGORIES, self.last_ids, strict=True):
                if prompt_id <= last:
                    return name
        raise ValueError(f"WISE has no prompt {prompt_id!r}; ids go from 1 to {self.last_ids[-1]}")

    def score(self, components: Mapping[str, float]) -> float:
        """Return the WiScore of an image, 0..1.

        Raises:
            KeyError: A component is missing.
        """
        return sum(weight * components[name] for name, weight in self.components.items()) / self.highest


LEGACY = WiseVersion(
    name="legacy",
    last_ids=(400, 567, 700, 800, 900, 1000),
    weights=(0.4, 0.167, 0.133, 0.1, 0.1, 0.1),
    components={"consistency": 0.7, "realism": 0.2, "aesthetic_quality": 0.1},
    highest=2,
)
VERIFIED = WiseVersion(
    name="verified",
    last_ids=(400, 520, 640, 760, 880, 1000),
    weights=(0.4, 0.12, 0.12, 0.12, 0.12, 0.12),
    components={"score": 1.0},
    highest=1,
)
VERSIONS = {version.name: version for version in (LEGACY, VERIFIED)}


@dataclass(frozen=True)
class WiseSummary:
    """Scores over all prompts of a version."""

    overall: float
    """Weighted mean of the categories, as in the benchmark's own table."""
    unweighted: float
    """Plain mean of the six categories, printed as "Overall" by RecA's and the early BAGEL script."""
    categories: Mapping[str, float]
    counts: Mapping[str, int]


# The asterisks of bold type may enclose the name; the original accepts no colon inside them.
_OFFICIAL = re.compile(r"(Consistency|Realism|Aesthetic Quality)\*{0,2}\s*:?\s*(\d)", re.IGNORECASE)
_STRICT = re.compile(
    r"^\W*(Consistency|Realism|Aesthetic Quality)[^\w-]*([0-2])(?:\s*/\s*2)?\W*$", re.IGNORECASE | re.MULTILINE
)
_BARE_LEGACY = re.compile(r"^\s*([0-2])\s*$", re.MULTILINE)
_OFFICIAL_VERIFIED = re.compile(r"Score\*{0,2}\s*:?\s*([01])\b", re.IGNORECASE)
_STRICT_VERIFIED = re.compile(r"^\W*Score[^\w-]*([01])(?:\s*/\s*1)?\W*$", re.IGNORECASE | re.MULTILINE)
_BARE_VERIFIED = re.compile(r"^\s*([01])\s*$", re.MULTILINE)


def parse_legacy(reply: str, rule: Rule = "strict") -> dict[str, float]:
    """Parse the three scores in a reply to the legacy protocol.

    Args:
        reply: The judge's text.
        rule: ``official`` matches the original's expression: the last digit after each name, though not after
            ``**Name:**`` nor after a full-width colon, and of "12" the 1; failing that, three one-digit lines.
            ``strict`` accepts a line per score in any markup, rejects scores above 2 and contradictions, and returns
            all three scores or none.

    Returns:
        Component -> score; by the official rule perhaps only some. Empty: unparsable.
    """
    if rule == "strict":
        return _strict_legacy(reply)
    scores = {_component(name): float(digit) for name, digit in _OFFICIAL.findall(reply)}
    bare = _BARE_LEGACY.findall(reply)
    if not scores and len(bare) >= len(LEGACY.components):
        return dict(zip(LEGACY.components, map(float, bare), strict=False))
    return scores


def _strict_legacy(reply: str) -> dict[str, float]:
    values: dict[str, set[float]] = {}
    for name, digit in _STRICT.findall(reply):
        values.setdefault(_component(name), set()).add(float(digit))
    bare = _BARE_LEGACY.findall(reply)
    if not values and len(bare) == len(LEGACY.components):
        return dict(zip(LEGACY.components, map(float, bare), strict=True))
    if values.keys() != LEGACY.components.keys() or any(len(scores) > 1 for scores in values.values()):
        return {}
    return {name: values[name].pop() for name in LEGACY.components}


def _component(name: str) -> str:
    return name.lower().replace(" ", "_")


def parse_verified(reply: str, rule: Rule = "strict") -> dict[str, float]:
    """Parse the score in a reply to the verified protocol.

    Args:
        reply: The judge's text.
        rule: ``official`` accepts the first "Score: 0" or "Score: 1", else a single line with only 0 or 1;
            ``strict`` accepts a separate line in any markup and rejects contradictions.

    Returns:
        ``{"score": 0 or 1}``. Empty: unparsable.
    """
    if rule == "strict":
        digits = set(_STRICT_VERIFIED.findall(reply)) or set(_BARE_VERIFIED.findall(reply))
        return {"score": float(digits.pop())} if len(digits) == 1 else {}
    if match := _OFFICIAL_VERIFIED.search(reply):
        return {"score": float(match[1])}
    bare = _BARE_VERIFIED.findall(reply)
    return {"score": float(bare[0])} if len(bare) == 1 else {}


def summarise(rows: Iterable[Mapping[str, Any]], version: WiseVersion) -> WiseSummary:
    """Score a complete set of judged images.

    Args:
        rows: ``prompt_id`` and the version's components, one row per prompt.
        version: Legacy or verified.

    Raises:
        ValueError: A prompt is missing, judged twice or unknown, or a score is missing or out of range. A part of the
            prompts has no overall score, because its categories would weigh differently.
    """
    by_category: dict[str, list[float]] = {name: [] for name in CATEGORIES}
    judged: set[int] = set()
    for row in rows:
        prompt_id = row["prompt_id"]
        scores = {name: row.get(name) for name in version.components}
        if not all(isinstance(value, int | float) and 0 <= value <= version.highest for value in scores.values()):
            raise ValueError(f"prompt {prompt_id} has no valid scores: {scores} must be from 0 to {version.highest}")
        if prompt_id in judged:
            raise ValueError(f"prompt {prompt_id} is judged twice")
        judged.add(prompt_id)
        by_category[version.category_of(prompt_id)].append(version.score(row))
    if absent := sorted(set(range(1, version.last_ids[-1] + 1)) - judged):
        examples = ", ".join(map(str, absent[:10])) + (", ..." if len(absent) > 10 else "")
        raise ValueError(
            f"WISE ({version.name}) is scored only when all {version.last_ids[-1]} prompts are: "
            f"{len(absent)} are missing: {examples}"
        )
    means = {name: sum(values) / len(values) for name, values in by_category.items()}
    return WiseSummary(
        overall=sum(weight * means[name] for weight, name in zip(version.weights, CATEGORIES, strict=True)),
        unweighted=sum(means.values()) / len(means),
        categories=means,
        counts={name: len(values) for name, values in by_category.items()},
    )
