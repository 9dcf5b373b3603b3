"""Bootstrap confidence intervals of scores and of paired differences, resampling prompts.

A prompt is resampled with all its images, because these are correlated (a cluster bootstrap). Prompts are
resampled within their category, and the overall score of a resample is the plain mean of its category means, as in the
score itself. Both models of a comparison use the same resamples, so that the difficulty that prompts share cancels.

Scores are given as ``{category: {prompt id: values of its images}}``. Results do not depend on the order of
categories or prompts, and a category's interval does not depend on the other categories.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, PositiveInt, model_validator

from reca.config.base import Fraction

Values = Mapping[str, Mapping[str, Sequence[float]]]
"""Category -> prompt id -> one value per image."""
FloatArray = NDArray[np.float64]
Weights = Mapping[str, float]
"""Weights of the categories in the overall score; only their ratios count. Empty: equal weights."""
EQUAL: Weights = {}
OVERALL = "overall"


class Estimate(BaseModel):
    """A score with its confidence interval."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    value: Fraction
    low: Fraction
    high: Fraction
    n: PositiveInt
    """Prompts with at least one value, of the categories that count."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"the interval [{self.low}, {self.high}] is upside down")
        return self


@dataclass(frozen=True)
class Delta:
    """Two scores and their difference ``aligned - base`` with its confidence interval."""

    base: float
    aligned: float
    delta: float
    low: float
    high: float


@dataclass(frozen=True)
class BenchmarkDelta:
    """A benchmark's differences: an entry of ``outputs/report/deltas.json``."""

    overall: Delta
    categories: Mapping[str, Delta]
    """In the benchmark's own order."""

    def by_name(self) -> dict[str, Delta]:
        """Return ``overall`` and every category by name."""
        return {OVERALL: self.overall, **self.categories}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Self:
        """Return the entry from its JSON form; undoes :func:`dataclasses.asdict`."""
        categories = {name: Delta(**delta) for name, delta in record["categories"].items()}
        return cls(Delta(**record["overall"]), categories)


def means(values: Values, weights: Weights = EQUAL) -> dict[str, float]:
    """Return the score of every category (mean over its images), and ``overall`` (mean of the categories).

    Raises:
        ValueError: There is no category, or one has no images.
    """
    scores = {}
    for category, prompts in sorted(values.items()):
        totals, counts = _totals(category, prompts)
        scores[category] = float(totals.sum() / counts.sum())
    if not scores:
        raise ValueError("there is nothing to average: no category has values")
    return {OVERALL: float(np.average(list(scores.values()), weights=_weights(scores, weights))), **scores}


def _weights(categories: Mapping[str, object], weights: Weights) -> list[float] | None:
    return [weights[name] for name in categories] if weights else None


def intervals(
    values: Values, confidence: float = 0.95, resamples: int = 4000, weights: Weights = EQUAL
) -> dict[str, Estimate]:
    """Return scores with percentile intervals, for ``overall`` and every category.

    Raises:
        ValueError: There is no category, or one has no images.
    """
    scores = means(values, weights)
    (bootstrapped,) = _bootstrap([values], resamples, 0, weights)
    sizes = {category: sum(bool(len(images)) for images in prompts.values()) for category, prompts in values.items()}
    sizes[OVERALL] = sum(size for category, size in sizes.items() if weights.get(category, 1.0))
    estimates = {}
    for name, score in scores.items():
        bounds = (score, *_bounds(bootstrapped[name], confidence))
        value, low, high = (min(1.0, max(0.0, bound)) for bound in bounds)  # an average may exceed 1 by one rounding
        estimates[name] = Estimate(value=value, low=low, high=high, n=sizes[name])
    return estimates


def scored_pairs(base: Values, aligned: Values) -> tuple[Values, Values]:
    """Return both without the prompts that lack a value on one side: these make no pair."""

    def paired(values: Values, other: Values) -> Values:
        pairs: dict[str, dict[str, Sequence[float]]] = {}
        for category, prompts in values.items():
            for prompt, scored in prompts.items():
                if len(scored) and len(other.get(category, {}).get(prompt, scored)):
                    pairs.setdefault(category, {})[prompt] = scored
        return pairs

    return paired(base, aligned), paired(aligned, base)


def paired_delta(
    base: Values,
    aligned: Values,
    confidence: float = 0.95,
    resamples: int = 4000,
    seed: int = 0,
    weights: Weights = EQUAL,
) -> BenchmarkDelta:
    """Return the differences ``aligned - base`` with percentile intervals, categories in the order of ``base``.

    Raises:
        ValueError: The two were not measured on the same prompts, so there are no pairs.
    """
    _check_pairs(base, aligned)
    before, after = means(base, weights), means(aligned, weights)
    resampled_before, resampled_after = _bootstrap([base, aligned], resamples, seed, weights)
    deltas = {}
    for name in (OVERALL, *base):
        bounds = _bounds(resampled_after[name] - resampled_before[name], confidence)
        deltas[name] = Delta(before[name], after[name], after[name] - before[name], *bounds)
    return BenchmarkDelta(deltas.pop(OVERALL), deltas)


def _bootstrap(models: Sequence[Values], resamples: int, seed: int, weights: Weights) -> list[dict[str, FloatArray]]:
    """Return each model's scores of the same resampled sets of prompts, for ``overall`` and every category."""
    scores: list[dict[str, FloatArray]] = [{} for _ in models]
    for category in sorted(models[0]):
        rng = np.random.default_rng([seed, *category.encode()])
        size = len(models[0][category])
        repeats = rng.multinomial(size, np.full(size, 1 / size), size=resamples)  # (resamples, prompts)
        for values, model_scores in zip(models, scores, strict=True):
            totals, counts = _totals(category, values[category])
            with np.errstate(invalid="ignore"):  # a resample of prompts without values is NaN
                model_scores[category] = (repeats @ totals) / (repeats @ counts)
    for model_scores in scores:
        categories = list(model_scores.values())
        model_scores[OVERALL] = np.average(categories, axis=0, weights=_weights(model_scores, weights))
    return scores


def _totals(category: str, prompts: Mapping[str, Sequence[float]]) -> tuple[FloatArray, FloatArray]:
    """Return sum and number of the values per prompt, prompts sorted by id."""
    ordered = [prompts[name] for name in sorted(prompts)]
    totals = np.array([np.sum(values) for values in ordered], np.float64)
    counts = np.array([len(values) for values in ordered], np.float64)
    if not counts.sum():
        raise ValueError(f"category {category!r} has no values")
    return totals, counts


def _bounds(resampled: FloatArray, confidence: float) -> tuple[float, float]:
    low, high = np.nanquantile(resampled, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _check_pairs(base: Values, aligned: Values) -> None:
    if base.keys() != aligned.keys():
        raise ValueError(f"different categories: {', '.join(sorted(base))} and {', '.join(sorted(aligned))}")
    for category in base:
        if unpaired := base[category].keys() ^ aligned[category].keys():
            example = sorted(unpaired)[0]
            raise ValueError(f"{category}: {len(unpaired)} prompts were measured once only, for instance {example!r}")
