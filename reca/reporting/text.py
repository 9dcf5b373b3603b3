"""Names and sentences of the page: what a benchmark asks, how a category is called."""

from dataclasses import dataclass


@dataclass(frozen=True)
class BenchmarkWords:
    """How one benchmark is presented."""

    title: str
    short: str
    """For a tile and a table."""
    question: str
    """What it asks of the model, and what 100 % means."""


BENCHMARKS = {
    "scenes": BenchmarkWords(
        title="Drawing what the prompt says",
        short="Drawing",
        question=(
            "The model draws every prompt several times; a detector looks for what the prompt names, and an image is "
            "right only if everything is there. 100 % means every image of every category is right; the overall "
            "score is the plain mean of the six categories, as in GenEval."
        ),
    ),
    "understanding": BenchmarkWords(
        title="Answering questions about images",
        short="Understanding",
        question=(
            "The model is asked about images it never trained on. 100 % means every answer is right. Alignment trains "
            "the drawing half, so here the aim is to lose nothing."
        ),
    ),
    "fidelity": BenchmarkWords(
        title="Rebuilding an image from its own embeddings",
        short="Reconstruction",
        question=(
            "The model reads an image it never trained on into its understanding embeddings, and draws it again from "
            "those alone: the very task that alignment trains. 100 % means everything that is checked survives."
        ),
    ),
}

_CATEGORIES = {
    "two_object": "two objects",
    "color_attr": "color attribution",
    "overall": "overall",
}


def benchmark_words(name: str) -> BenchmarkWords:
    """How a benchmark is presented; one this module does not know is called by its own name."""
    plain = name.replace("_", " ")
    return BENCHMARKS.get(
        name, BenchmarkWords(plain.capitalize(), plain, "Scores run from 0 to 100 %; higher is better.")
    )


def category_words(name: str) -> str:
    """A category's name as it is read: ``single_object`` -> ``single object``."""
    return _CATEGORIES.get(name, name.replace("_", " "))


def points(value: float) -> str:
    """A difference of two scores in points of per cent, always with its sign: ``+4.2``, ``−1.0``, ``0.0``."""
    rounded = round(100 * value, 1)
    return "0.0" if rounded == 0 else f"{rounded:+.1f}".replace("-", "−")


def per_cent(value: float) -> str:
    """A score in per cent, without the sign: ``41.7``."""
    return f"{100 * value:.1f}"
