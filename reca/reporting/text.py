"""Names and numbers of the report in words: titles of benchmarks, labels of categories, changes in points."""

import tomllib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class BenchmarkText:
    """The title and the explanation of a benchmark."""

    title: str
    short: str
    """Short title, in tiles and tables."""
    question: str
    """The task given to the model, and the meaning of 100 %."""


TEXTS = tomllib.loads(Path(__file__).with_suffix(".toml").read_text())
BENCHMARKS = {name: BenchmarkText(**entry) for name, entry in TEXTS.items()}
_CATEGORIES = {"two_object": "two objects", "color_attr": "color attribution"}


def benchmark_text(name: str) -> BenchmarkText:
    """Return the text of a benchmark; one without an entry goes by its own name."""
    plain = name.replace("_", " ")
    return BENCHMARKS.get(
        name, BenchmarkText(plain.capitalize(), plain, "Scores run from 0 to 100 %; higher is better.")
    )


def category_label(name: str) -> str:
    """Return the label of a category: ``single_object`` -> ``single object``."""
    return _CATEGORIES.get(name, name.replace("_", " "))


def format_points(value: float) -> str:
    """Format a difference of two scores in points of per cent, with its sign: ``+4.2``, ``−1.0``, ``0.0``."""
    points = round(100 * value, 1)
    return "0.0" if points == 0 else f"{points:+.1f}".replace("-", "−")


def format_percent(value: float) -> str:
    """Format a score in per cent, without the unit: ``41.7``."""
    return f"{100 * value:.1f}"
