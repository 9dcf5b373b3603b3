"""Limits on habits of language in docstrings, comments and names.

The limits are the highest rates in five well-written projects of the field (nanochat, torchtitan, litgpt,
flow_matching, an MLOps template), per 1,000 words of docstrings and comments or in per cent of docstrings or names.
"""

import ast
import io
import re
import tokenize
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest

from reca.config import ROOT

FOLDERS = ("reca", "flows", "tests", "bench", "tools")
PHRASES = {  # name -> pattern, occurrences per 1,000 words of prose
    "clause as a noun": (r"\bwhat (is|it|a|the|they|was)\b", 0.50),
    "pronoun after of": (r"\bof (them|it|each|one)\b", 0.40),
    "negative pronoun": (r"\b(nobody|nothing)\b", 0.40),
    "posture verb": (r"\b(lies?|lay|stands?)\b", 0.20),
    "talking process": (r"\b(tells?|told)\b", 0.07),
    "archaic preposition": (r"\bbeside\b", 0.05),
    "free relative": (r"\b(whoever|whatever|wherever|however it)\b", 0.10),
    "archaic word": (r"\b(anew|mends?|mended|but for)\b", 0.05),
    "for as because": (r", for \w+ ", 0.15),
}
CLAUSES = re.compile(r"(What|Where|Whether|How|Which|Who|When)\b")
FRAGMENTS = re.compile(r"(Of|As|In|For|To|By|From|The same|Likewise|Its|Their)\b")
MOST_CLAUSES, MOST_FRAGMENTS, MOST_PARTICIPLES = 1.6, 2.0, 0.3
"""Per cent of docstrings that begin with a clause or a fragment, and of assigned names that are bare participles."""
# fmt: off
PARTICIPLES = {
    "found", "told", "made", "kept", "asked", "wanted", "shown", "seen", "drawn", "held", "taken", "measured",
    "rounded", "known", "left", "said", "noted", "chosen", "fitting", "lost", "reached", "moved", "changed", "joined",
    "placed", "dropped", "marked", "lacking", "missing", "alone", "beside", "apart", "own", "theirs", "mine", "these",
    "others", "each", "one", "several", "some", "whole", "place", "due",
}
# fmt: on


@dataclass
class Language:
    """Docstrings, comments and names of the project."""

    comments: list[tuple[str, str]] = field(default_factory=list)
    """Location and text of comments."""
    docstrings: list[tuple[str, str]] = field(default_factory=list)
    names: list[tuple[str, str]] = field(default_factory=list)
    """Location and name of assignments."""
    classes: list[tuple[str, str]] = field(default_factory=list)


@cache
def language() -> Language:
    """Read all Python files."""
    result = Language()
    for path in sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")):
        read_file(path, path.relative_to(ROOT).as_posix(), result)
    return result


def read_file(path: Path, name: str, result: Language) -> None:
    """Add a file's language to the result."""
    text = path.read_text()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            result.docstrings.append((f"{name}:{node.lineno}", node.value.value.strip()))
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            result.names.append((f"{name}:{node.lineno}", node.id))
        elif isinstance(node, ast.ClassDef):
            result.classes.append((f"{name}:{node.lineno}", node.name))
    result.comments += read_comments(text, name)


def read_comments(text: str, name: str) -> Iterator[tuple[str, str]]:
    """Yield location and text of comments."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield f"{name}:{token.start[0]}", token.string.lstrip("# ")


@pytest.mark.parametrize("phrase", PHRASES)
def test_phrases_are_rare(phrase: str) -> None:
    pattern, limit = PHRASES[phrase]
    prose = [*language().comments, *language().docstrings]
    words = sum(len(text.split()) for _, text in prose)
    hits = [
        f"{location}: {match[0]}" for location, text in prose for match in re.finditer(pattern, text, re.IGNORECASE)
    ]
    assert 1000 * len(hits) <= limit * words, "\n".join(hits)


@pytest.mark.parametrize(
    ("beginning", "most"), [(CLAUSES, MOST_CLAUSES), (FRAGMENTS, MOST_FRAGMENTS)], ids=["clause", "fragment"]
)
def test_docstrings_begin_with_a_verb_or_a_noun(beginning: re.Pattern[str], most: float) -> None:
    docstrings = language().docstrings
    hits = [f"{location}: {text.splitlines()[0]}" for location, text in docstrings if beginning.match(text)]
    assert 100 * len(hits) <= most * len(docstrings), "\n".join(hits)


def test_names_are_not_bare_participles() -> None:
    names = language().names
    hits = [f"{location}: {name}" for location, name in names if name in PARTICIPLES]
    assert 100 * len(hits) <= MOST_PARTICIPLES * len(names), "\n".join(hits)


def test_public_class_names_are_unique() -> None:
    classes = language().classes
    counts = Counter(name for _, name in classes)
    doubles = [f"{name}: {location}" for location, name in classes if counts[name] > 1 and not name.startswith("_")]
    assert not doubles, "\n".join(sorted(doubles))
