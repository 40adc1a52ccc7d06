"""Intervals of means by the bootstrap: how far a metric would move with other held-out examples.

Examples that share an image or a sentence are not independent, so whole groups of them are drawn (the cluster bootstrap), and the
interval lies between percentiles of the drawn means (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

CELLS = 1 << 22
"""Groups that are drawn at once, over several draws: 32 MiB of numbers."""


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of single examples, whose mean is a metric or a part of one.

    ``values``: (N,) numbers or bools. ``groups``: for each example the number or the name of the group that it is drawn with.
    """

    values: np.ndarray
    groups: Sequence[Any] | np.ndarray

    def mean(self) -> float:
        """The mean over examples; NaN without any."""
        return float(self.values.mean()) if len(self.values) else float("nan")


def interval(scores: Sequence[Scores], draws: int, seed: int, level: float = 0.95) -> tuple[float, float] | None:
    """The bootstrap interval of the mean of the means of ``scores``, by the percentile method.

    It is of the held-out examples alone: other random numbers in training move a metric too.

    Args:
        scores: of one metric, all over the same groups; each draw takes the same groups of all.
        draws: how often as many groups as there are, are drawn with replacement.
        seed: of the draws.
        level: share of the drawn means that lies inside.

    Returns:
        Its ends; None where draws say nothing: no examples, a score that is no number, or groups that are all alike, whose
        draws are too, however few they are.

    Raises:
        ValueError: the scores are not over the same groups.

    >>> interval([Scores(np.array([1.0, 0.0, 0.5]), ["a", "b", "b"])], draws=100, seed=0)
    (0.25, 1.0)
    """
    tables = [_by_group(part) for part in scores]
    if any(not np.array_equal(names, tables[0][0]) for names, _, _ in tables):
        raise ValueError("the parts of a metric have to be over the same groups")
    groups = len(tables[0][0]) if tables else 0
    if groups == 0 or not all(np.isfinite(sums).all() for _, sums, _ in tables):
        return None
    rng, step, pieces = np.random.default_rng(seed), max(1, CELLS // groups), []
    for start in range(0, draws, step):
        drawn = rng.integers(groups, size=(min(step, draws - start), groups))
        parts = [sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1) for _, sums, sizes in tables]
        pieces.append(np.mean(parts, axis=0))
    means = np.concatenate(pieces)
    if np.allclose(means, means[0], rtol=1e-12, atol=0):
        return None
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _by_group(scores: Scores) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The names of the groups in order, and for each the sum and the number of its scores."""
    names, group_of = np.unique(np.asarray(scores.groups), return_inverse=True)
    sums = np.bincount(group_of, weights=scores.values, minlength=len(names))
    return names, sums, np.bincount(group_of, minlength=len(names))
