"""How well a judge agrees with people: rank correlations."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's rank correlation, -1..1: Pearson's of the ranks, equal values sharing their mean rank.

    Raises:
        ValueError: See :func:`kendall`.
    """
    x, y = (_ranks(values) for values in _checked(first, second))
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / np.sqrt((x * x).sum() * (y * y).sum()))


def kendall(first: Sequence[float], second: Sequence[float]) -> float:
    """Kendall's tau-b, -1..1, which corrects for equal values.

    Raises:
        ValueError: The lengths differ, there are fewer than two values, or one side is constant.
    """
    x, y = _checked(first, second)
    signs = [np.sign(values[:, None] - values[None, :])[np.triu_indices(len(values), 1)] for values in (x, y)]
    return float((signs[0] * signs[1]).sum() / np.sqrt((signs[0] != 0).sum() * float((signs[1] != 0).sum())))


def _checked(first: Sequence[float], second: Sequence[float]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    x, y = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if x.shape != y.shape or x.ndim != 1 or len(x) < 2:
        raise ValueError(f"a correlation needs two equally long lists of two numbers or more, not {x.shape}, {y.shape}")
    if x.min() == x.max() or y.min() == y.max():
        raise ValueError("a constant list has no rank correlation")
    return x, y


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    return (last - (counts - 1) / 2)[which]
