"""GEdit-Bench's and VIEScore's scoring rules, pure functions from a judge's replies to scores of 0-10.

After Liu et al., "Step1X-Edit" (arXiv 2504.17761; stepfun-ai/Step1X-Edit@570eba6, Apache-2.0) and Ku et al., "VIEScore"
(arXiv 2312.14867; TIGER-AI-Lab/VIEScore@2cbea4e, MIT), written independently from the rules and proven on the
originals' answers (``tests/golden/gedit``, ``tests/golden/viescore``).

A judge is asked twice about an edit: for semantic consistency (SC: edit success, over-editing) and perceptual quality
(PQ: naturalness, artefacts). Each is the smaller of its two scores, and the edit's score is the root of their product.
The original draws a random number for an unreadable reply; this code never does.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

ITEMS: Mapping[str, int] = MappingProxyType(
    {
        "background_change": 40,
        "color_alter": 40,
        "material_alter": 40,
        "motion_change": 40,
        "ps_human": 70,
        "style_change": 60,
        "subject-add": 60,
        "subject-remove": 57,
        "subject-replace": 60,
        "text_change": 99,
        "tone_transfer": 40,
    }
)
"""Number of edits by group in a language, 606 in all."""
LANGUAGES = ("en", "cn")
DELIMITER = "||V^=^V||"
RATE_LIMITED = "rate_limit_exceeded"
LIST_REASONING = "System: output is simply a list of scores"
NUMBER_REASONING = "System: output is simply a number"


@dataclass(frozen=True)
class JudgedEdit:
    """One judged edit."""

    group: str
    language: str
    semantics: float | None
    """0..10; ``None`` without a usable reply."""
    quality: float | None
    intersection: bool = False
    """The data's flag ``Intersection_exist``: the edit belongs to the subset that papers also report."""


@dataclass(frozen=True)
class Means:
    """Mean scores of a language, of all its edits or of the intersection subset."""

    semantics: Mapping[str, float]
    """Per group."""
    quality: Mapping[str, float]
    overall: Mapping[str, float]
    """Per group: mean of the edits' scores, not the root of the means."""

    @property
    def macro(self) -> tuple[float, float, float]:
        """Plain means over the groups of semantics, quality and overall; the last is "G_O", the published score."""
        return _mean(self.semantics), _mean(self.quality), _mean(self.overall)


def parse_official(reply: str) -> Any:
    """Parse a reply as the original does, before it asks again or guesses.

    It expects JSON with a list ``score`` between two delimiters or from the first "{" to the last "}"; a single score
    becomes a list. A bare list of two whole numbers and a bare whole number from 0 to 10 count too. Invalid JSON is
    repaired once (names in quotes, numbers in lists, all else in quotes) and returned with or without a ``score``.

    Returns:
        A dictionary (or another JSON value), :data:`RATE_LIMITED`, or ``False`` for an unreadable reply.

    Raises:
        json.JSONDecodeError: A list of two numbers that JSON does not allow, such as [07, 8].
    """
    if reply == RATE_LIMITED:
        return RATE_LIMITED
    if reply.count(DELIMITER) == 2:
        start, end = reply.find(DELIMITER) + len(DELIMITER), reply.rfind(DELIMITER)
    else:
        start, end = reply.find("{"), reply.rfind("}") + 1
        if start == -1 or end == 0:
            return _parse_bare(reply)
    if start == end:
        return False
    text = reply[start:end].strip().replace("\n", "")
    try:
        parsed = json.loads(text)
        if not isinstance(parsed["score"], list):
            parsed["score"] = [parsed["score"]]
    except (ValueError, TypeError, KeyError, IndexError, RecursionError):
        try:
            return json.loads(_repair(text))
        except (ValueError, RecursionError):
            return False
    return parsed


def _parse_bare(reply: str) -> Any:
    """Parse a reply without JSON: a list of two numbers, or one number."""
    listed = reply[reply.find("[") : reply.rfind("]") + 1]
    if re.match(r"^\[\d+, ?\d+\]$", listed):
        return {"score": json.loads(listed), "reasoning": LIST_REASONING}
    try:
        number = int(reply)
    except ValueError:
        return False
    return {"score": [number], "reasoning": NUMBER_REASONING} if 0 <= number <= 10 else False


def _repair(text: str) -> str:
    """Quote names and values of nearly valid JSON, as the original does."""

    def quoted(match: re.Match[str]) -> str:
        name, value, end = match[1], match[2].strip(), match[3]
        if re.match(r"^-?\d+(\.\d+)?$", value):
            value = f"[{value}]"
        elif not re.match(r"^(true|false|null)$", value, re.IGNORECASE):
            value = f'"{value}"'
        return f"{name}: {value}{end}"

    return re.sub(r'(".*?"):(.*?)(,|})', quoted, re.sub(r"(\w+):", r'"\1":', text))


def parse_strict(reply: str) -> tuple[float, float] | None:
    """Parse the two scores of a reply; ``None`` unless there are exactly two, from 0 to 10.

    The JSON is found and repaired as in the original, but "7" in quotes is a number and a single score is unreadable.
    """
    try:
        parsed = parse_official(reply)
    except ValueError:
        return None
    scores = parsed.get("score") if isinstance(parsed, dict) else None
    if not isinstance(scores, list) or len(scores) != 2:
        return None
    first, second = map(_number, scores)
    return None if first is None or second is None else (first, second)


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if 0 <= number <= 10 else None


def item_score(semantics: Sequence[float], quality: Sequence[float]) -> tuple[float, float, float]:
    """Return SC, PQ and overall of an edit: min, min, and the root of their product.

    The scale is not checked, as in the original: the parsers do that.

    Raises:
        ValueError: A list is empty, or one of the two is negative.
    """
    smallest = min(semantics), min(quality)
    return *smallest, math.sqrt(smallest[0] * smallest[1])


def summarise(edits: Iterable[JudgedEdit], language: str, intersection: bool = False) -> Means:
    """Return the mean scores of a language.

    Args:
        edits: All edits; those of other languages are ignored.
        language: ``en`` or ``cn`` (the original's ``zh`` matches no edit and gives NaN).
        intersection: Use only the flagged subset.

    Raises:
        ValueError: A group, or the whole language (and subset), has no scored edit: a mean over the groups would
            silently omit that group.
    """
    selected = [edit for edit in edits if edit.language == language and (edit.intersection or not intersection)]
    groups: dict[str, list[tuple[float, float, float]]] = {edit.group: [] for edit in selected}
    for edit in selected:
        if edit.semantics is not None and edit.quality is not None:
            groups[edit.group].append(item_score([edit.semantics], [edit.quality]))
    subset = " of the intersection" if intersection else ""
    if empty := [group for group, scores in groups.items() if not scores]:
        raise ValueError(f"no edit{subset} in {language!r} was scored in {', '.join(empty)}")
    if not groups:
        raise ValueError(f"there is no edit{subset} in {language!r}; the data has {' and '.join(LANGUAGES)}")
    semantics, quality, overall = (
        {group: sum(score[column] for score in scores) / len(scores) for group, scores in groups.items()}
        for column in range(3)
    )
    return Means(semantics, quality, overall)


def _mean(values: Mapping[str, float]) -> float:
    return sum(values.values()) / len(values)
