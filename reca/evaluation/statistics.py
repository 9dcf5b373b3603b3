"""How sure a score is: bootstrap intervals, resampling prompts.

Images of one prompt are alike, so the prompt is drawn, with all its images (a cluster bootstrap). Prompts are
drawn within their category, and the overall score is the plain mean of the category means in every draw, as in the
score itself. For a comparison, one draw serves both models, so what prompts have in common cancels.

Scores are given as ``{category: {prompt id: values of its images}}``. Results do not depend on the order of
categories or prompts, and a category's interval does not depend on which other categories there are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Values = Mapping[str, Mapping[str, Sequence[float]]]
"""Category -> prompt id -> one value per image."""
Draws = NDArray[np.float64]
"""One score per bootstrap draw."""
Weights = Mapping[str, float]
"""Of the categories in the overall score; only their ratios count. Empty: all weigh the same."""
EQUAL: Weights = {}
OVERALL = "overall"


@dataclass(frozen=True)
class Interval:
    """A score with its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Delta:
    """Two scores and their difference ``aligned - base`` with its interval."""

    base: float
    aligned: float
    delta: float
    low: float
    high: float


@dataclass(frozen=True)
class BenchmarkDelta:
    """The differences of one benchmark."""

    overall: Delta
    categories: Mapping[str, Delta]


def means(values: Values, weights: Weights = EQUAL) -> dict[str, float]:
    """The score of every category (mean over its images), and ``overall`` (mean of these, plain without weights).

    Raises:
        ValueError: There is no category, or one has no images.
    """
    scores = {}
    for category, prompts in sorted(values.items()):
        totals, numbers = _totals(category, prompts)
        scores[category] = float(totals.sum() / numbers.sum())
    if not scores:
        raise ValueError("there is nothing to average: no category has values")
    return {OVERALL: float(np.average(list(scores.values()), weights=_weights(scores, weights))), **scores}


def _weights(categories: Mapping[str, object], weights: Weights) -> list[float] | None:
    return [weights[name] for name in categories] if weights else None


def intervals(
    values: Values, confidence: float = 0.95, draws: int = 4000, seed: int = 0, weights: Weights = EQUAL
) -> dict[str, Interval]:
    """Scores with percentile intervals, for ``overall`` and every category.

    Raises:
        ValueError: There is no category, or one has no images.
    """
    drawn = _draw(values, draws, seed, weights)
    scores = means(values, weights)
    return {name: Interval(value, *_bounds(drawn[name], confidence)) for name, value in scores.items()}


def scored_pairs(base: Values, aligned: Values) -> tuple[Values, Values]:
    """Both without the prompts that could be scored on one side only, or on none: they make no pair."""

    def kept(values: Values, other: Values) -> Values:
        found: dict[str, dict[str, Sequence[float]]] = {}
        for category, prompts in values.items():
            for prompt, scored in prompts.items():
                if len(scored) and len(other.get(category, {}).get(prompt, scored)):
                    found.setdefault(category, {})[prompt] = scored
        return found

    return kept(base, aligned), kept(aligned, base)


def paired_delta(
    base: Values,
    aligned: Values,
    confidence: float = 0.95,
    draws: int = 4000,
    seed: int = 0,
    weights: Weights = EQUAL,
) -> dict[str, Delta]:
    """Differences ``aligned - base`` with percentile intervals, for ``overall`` and every category.

    Raises:
        ValueError: The two were not measured on the same prompts, so there are no pairs.
    """
    _check_pairs(base, aligned)
    before, after = means(base, weights), means(aligned, weights)
    drawn_before, drawn_after = _draw(base, draws, seed, weights), _draw(aligned, draws, seed, weights)
    return {
        name: Delta(
            before[name],
            after[name],
            after[name] - before[name],
            *_bounds(drawn_after[name] - drawn_before[name], confidence),
        )
        for name in before
    }


def _draw(values: Values, draws: int, seed: int, weights: Weights) -> dict[str, Draws]:
    """Scores of ``draws`` resampled sets of prompts, for ``overall`` and every category."""
    scores: dict[str, Draws] = {}
    for category, prompts in sorted(values.items()):
        totals, numbers = _totals(category, prompts)
        # How often each prompt is drawn: the same counts for every model with this many prompts.
        rng = np.random.default_rng([seed, *category.encode()])
        times = rng.multinomial(len(totals), np.full(len(totals), 1 / len(totals)), size=draws)
        with np.errstate(invalid="ignore"):  # a draw of nothing but prompts without values is not a number
            scores[category] = (times @ totals) / (times @ numbers)
    return {OVERALL: np.average(list(scores.values()), axis=0, weights=_weights(scores, weights)), **scores}


def _totals(category: str, prompts: Mapping[str, Sequence[float]]) -> tuple[Draws, Draws]:
    """Sum and number of each prompt's values, prompts in order of their id."""
    ordered = [prompts[name] for name in sorted(prompts)]
    totals = np.array([np.sum(values) for values in ordered], np.float64)
    numbers = np.array([len(values) for values in ordered], np.float64)
    if not numbers.sum():
        raise ValueError(f"category {category!r} has no values")
    return totals, numbers


def _bounds(drawn: Draws, confidence: float) -> tuple[float, float]:
    low, high = np.nanquantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _check_pairs(base: Values, aligned: Values) -> None:
    if base.keys() != aligned.keys():
        raise ValueError(f"different categories: {', '.join(sorted(base))} and {', '.join(sorted(aligned))}")
    for category in base:
        if alone := base[category].keys() ^ aligned[category].keys():
            example = sorted(alone)[0]
            raise ValueError(f"{category}: {len(alone)} prompts were measured once only, for instance {example!r}")
