"""Templates of L_RecA: the prompts under which a model reconstructs an image ("describe the image in detail").

A template says nothing about the image; it only has to be a request that understanding models answer in detail.
Many wordings keep the model from tying reconstruction to a single phrase. The list, ``prompts.txt``, is our own. Its
first :data:`SIMPLE` entries use plain words only: they suit tiny models with a small vocabulary.
"""

from collections.abc import Sequence
from pathlib import Path

from reca.runtime.seeding import derive_seed

TEMPLATES = tuple(Path(__file__).with_suffix(".txt").read_text().splitlines())
SIMPLE = 8
"""Number of templates at the start of the list that are short, lower case and without punctuation."""


def choose_templates(seeds: Sequence[int], count: int | None = None) -> list[str]:
    """Return one template per seed; the same seed gives the same template in every process.

    Args:
        seeds: One seed per sample.
        count: Number of templates to choose from, the first of the list; ``None``: all.

    Raises:
        ValueError: ``count`` is not between 1 and the number of templates.
    """
    limit = len(TEMPLATES) if count is None else count
    if not 1 <= limit <= len(TEMPLATES):
        raise ValueError(f"train.prompt_templates is {limit}; there are {len(TEMPLATES)} templates: choose 1 to that")
    return [TEMPLATES[derive_seed("template", seed) % limit] for seed in seeds]
