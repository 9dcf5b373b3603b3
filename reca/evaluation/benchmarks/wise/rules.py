"""WISE's scoring rules, pure: from a judge's replies to WiScore.

After Niu et al., "WISE" (arXiv 2503.07265; PKU-YuanGroup/WISE@eb51174, which carries no licence: nothing of it is kept
here), written anew from the rules and proven on what the original answers (``tests/golden/wise``).

There are two benchmarks of that name. *Legacy* (the paper, and RecA's tables) has three scores of 0-2 per image;
*verified* (2026) one of 0-1. Their prompts, ranges, weights and judges differ, and so do their numbers.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

CATEGORIES = ("CULTURE", "TIME", "SPACE", "BIOLOGY", "PHYSICS", "CHEMISTRY")
PROMPTS = 1000
MISSING_IN_RECA = 9.9
"""What RecA's copy writes for a score that it could not read."""

Rule = Literal["strict", "official", "reca"]


@dataclass(frozen=True)
class Version:
    """One of the two benchmarks."""

    name: str
    last_ids: tuple[int, ...]
    """Last prompt id of each category, in the order of :data:`CATEGORIES`; ids start at 1."""
    weights: tuple[float, ...]
    """Of the categories, in the overall score; they add up to 1."""
    components: Mapping[str, float]
    """A judge's scores and their weights in WiScore."""
    highest: int
    """Best score of a component."""

    def category_of(self, prompt_id: int) -> str:
        """The category of a prompt.

        Raises:
            ValueError: There is no such prompt.
        """
        if prompt_id >= 1:
            for name, last in zip(CATEGORIES, self.last_ids, strict=True):
                if prompt_id <= last:
                    return name
        raise ValueError(f"WISE has no prompt {prompt_id!r}; ids go from 1 to {self.last_ids[-1]}")

    def score(self, components: Mapping[str, float]) -> float:
        """WiScore of one image, 0..1.

        Raises:
            KeyError: A component is missing.
        """
        return sum(weight * components[name] for name, weight in self.components.items()) / self.highest


LEGACY = Version(
    name="legacy",
    last_ids=(400, 567, 700, 800, 900, 1000),
    weights=(0.4, 0.167, 0.133, 0.1, 0.1, 0.1),
    components=MappingProxyType({"consistency": 0.7, "realism": 0.2, "aesthetic_quality": 0.1}),
    highest=2,
)
VERIFIED = Version(
    name="verified",
    last_ids=(400, 520, 640, 760, 880, 1000),
    weights=(0.4, 0.12, 0.12, 0.12, 0.12, 0.12),
    components=MappingProxyType({"score": 1.0}),
    highest=1,
)
VERSIONS = {version.name: version for version in (LEGACY, VERIFIED)}


@dataclass(frozen=True)
class Summary:
    """Scores over all prompts of a version."""

    overall: float
    """Weighted mean of the categories: what the benchmark's own table shows."""
    unweighted: float
    """Plain mean of the six categories: what RecA's and the early BAGEL script print as "Overall"."""
    categories: Mapping[str, float]
    counts: Mapping[str, int]


_NAMED = {  # the asterisks of bold type may enclose the name; the original takes no colon inside them
    "official": re.compile(r"(Consistency|Realism|Aesthetic Quality)\*{0,2}\s*:?\s*(\d)", re.IGNORECASE),
    "reca": re.compile(r"(Consistency|Realism|Aesthetic Quality)\*{0,2}\s*[:\uff1a]?\s*(\d)", re.IGNORECASE),
}
_STRICT = re.compile(
    r"^\W*(Consistency|Realism|Aesthetic Quality)[^\w-]*([0-2])(?:\s*/\s*2)?\W*$", re.IGNORECASE | re.MULTILINE
)
_LONE_LEGACY = re.compile(r"^\s*([0-2])\s*$", re.MULTILINE)
_VERIFIED = re.compile(r"Score\*{0,2}\s*:?\s*([01])\b", re.IGNORECASE)
_STRICT_VERIFIED = re.compile(r"^\W*Score[^\w-]*([01])(?:\s*/\s*1)?\W*$", re.IGNORECASE | re.MULTILINE)
_LONE_VERIFIED = re.compile(r"^\s*([01])\s*$", re.MULTILINE)


def parse_legacy(reply: str, rule: Rule = "strict") -> dict[str, float]:
    """The three scores in a reply to the legacy protocol.

    Args:
        reply: What the judge wrote.
        rule: ``official`` finds what the original's expression finds: the last digit after each name, though not after
            ``**Name:**`` nor after a full-width colon, and of "12" the 1; failing that, three lines of one digit.
            ``reca`` is RecA's copy: it also takes full-width colons, not the three lines, and fills in 9.9.
            ``strict``, the default, takes a line per score in any dress, refuses what is above 2 or said twice with
            different values, and returns all three scores or none.

    Returns:
        Component -> score; by the official rule perhaps not all of them. Empty: unparsable.
    """
    if rule == "strict":
        return _strict_legacy(reply)
    found = {_component(name): float(digit) for name, digit in _NAMED[rule].findall(reply)}
    if rule == "reca":
        return {name: found.get(name, MISSING_IN_RECA) for name in LEGACY.components}
    lone = _LONE_LEGACY.findall(reply)
    if not found and len(lone) >= len(LEGACY.components):
        return dict(zip(LEGACY.components, map(float, lone), strict=False))
    return found


def _strict_legacy(reply: str) -> dict[str, float]:
    said: dict[str, set[float]] = {}
    for name, digit in _STRICT.findall(reply):
        said.setdefault(_component(name), set()).add(float(digit))
    lone = _LONE_LEGACY.findall(reply)
    if not said and len(lone) == len(LEGACY.components):
        return dict(zip(LEGACY.components, map(float, lone), strict=True))
    if said.keys() != LEGACY.components.keys() or any(len(values) > 1 for values in said.values()):
        return {}
    return {name: said[name].pop() for name in LEGACY.components}


def _component(name: str) -> str:
    return name.lower().replace(" ", "_")


def parse_verified(reply: str, rule: Rule = "strict") -> dict[str, float]:
    """The score in a reply to the verified protocol.

    Args:
        reply: What the judge wrote.
        rule: ``official`` takes the first "Score: 0" or "Score: 1", else a single line that is 0 or 1 alone;
            ``strict`` takes a line of its own in any dress and refuses contradictions.

    Returns:
        ``{"score": 0 or 1}``. Empty: unparsable.
    """
    if rule == "strict":
        said = set(_STRICT_VERIFIED.findall(reply)) or set(_LONE_VERIFIED.findall(reply))
        return {"score": float(said.pop())} if len(said) == 1 else {}
    if match := _VERIFIED.search(reply):
        return {"score": float(match[1])}
    lone = _LONE_VERIFIED.findall(reply)
    return {"score": float(lone[0])} if len(lone) == 1 else {}


def summarise(rows: Iterable[Mapping[str, Any]], version: Version) -> Summary:
    """Scores over a complete set of judged images.

    Args:
        rows: ``prompt_id`` and the version's components, one row per prompt.
        version: Legacy or verified.

    Raises:
        ValueError: A prompt is missing, judged twice or unknown, or a score is missing or out of range. There is no
            overall score of some of the prompts: their categories weigh differently.
    """
    by_category: dict[str, list[float]] = {name: [] for name in CATEGORIES}
    seen: set[int] = set()
    for row in rows:
        prompt_id = row["prompt_id"]
        scores = {name: row.get(name) for name in version.components}
        if not all(isinstance(value, int | float) and 0 <= value <= version.highest for value in scores.values()):
            raise ValueError(f"prompt {prompt_id} has no valid scores: {scores} must be from 0 to {version.highest}")
        if prompt_id in seen:
            raise ValueError(f"prompt {prompt_id} is judged twice")
        seen.add(prompt_id)
        by_category[version.category_of(prompt_id)].append(version.score(row))
    if missing := sorted(set(range(1, version.last_ids[-1] + 1)) - seen):
        some = ", ".join(map(str, missing[:10])) + (", ..." if len(missing) > 10 else "")
        raise ValueError(
            f"WISE ({version.name}) is scored only when all {version.last_ids[-1]} prompts are: "
            f"{len(missing)} are missing: {some}"
        )
    means = {name: sum(values) / len(values) for name, values in by_category.items()}
    return Summary(
        overall=sum(weight * means[name] for weight, name in zip(version.weights, CATEGORIES, strict=True)),
        unweighted=sum(means.values()) / len(means),
        categories=means,
        counts={name: len(values) for name, values in by_category.items()},
    )


def reca_scores(rows: Iterable[Mapping[str, Any]]) -> dict[str, float] | None:
    """RecA's (and early BAGEL's) reading of legacy scores: the six categories and their plain mean, "Overall".

    Time and space are told apart by the ``Subcategory`` and not by the id. A score of 9.9 (unreadable) voids the
    culture or the space-time file, though not the science file, whose mean it spoils.

    Returns:
        Scores in the order in which that script prints them, or ``None`` where it would give none.
    """
    totals: dict[str, list[float]] = {"Cultural": []}
    void = False
    for row in sorted(rows, key=lambda row: _file_of(row["prompt_id"])):  # one file after another, rows in their order
        prompt_id, values = row["prompt_id"], [row[name] for name in LEGACY.components]
        category = LEGACY.category_of(prompt_id).capitalize()
        if category in ("Time", "Space"):
            category = "Time" if row["Subcategory"] in ("Longitudinal time", "Horizontal time") else "Space"
        void |= prompt_id <= 700 and MISSING_IN_RECA in values
        totals.setdefault("Cultural" if category == "Culture" else category, []).append(LEGACY.score(row))
    counts = {name: len(values) for name, values in totals.items()}
    science = sum(counts.get(name, 0) for name in ("Biology", "Physics", "Chemistry"))
    if void or counts["Cultural"] < 400 or counts.get("Time", 0) + counts.get("Space", 0) < 300 or science < 300:
        return None
    means = {name: sum(values) / len(values) for name, values in totals.items()}
    return {**means, "Overall": sum(means.values()) / len(means)}


def _file_of(prompt_id: int) -> int:
    return 0 if prompt_id <= 400 else 1 if prompt_id <= 700 else 2
