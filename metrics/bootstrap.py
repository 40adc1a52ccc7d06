"""Bootstrap confidence intervals of metrics, which estimate how much a metric would vary with other held-out examples.

Examples that share an image or a sentence are not independent, so whole groups of examples are resampled (cluster bootstrap). The
ends of the interval are percentiles of the resampled means (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter
13).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

MAX_DRAWN = 1 << 22
"""Maximum total number of groups to draw at a time for several resamples. Their indices take 32 MiB."""


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of individual examples, whose mean is a metric or one component of a metric.

    Attributes:
        values: (N,) numbers or bools.
        groups: index or name of the group of each example; groups are resampled as a whole.
    """

    values: np.ndarray
    groups: Sequence[Any] | np.ndarray

    def mean(self) -> float:
        """Returns the mean over examples, or NaN if there are none."""
        return float(self.values.mean()) if len(self.values) else float("nan")


def interval(scores: Sequence[Scores], draws: int, seed: int, level: float = 0.95) -> tuple[float, float] | None:
    """Computes the bootstrap interval of a metric, which is the mean of the means of ``scores``, by the percentile method.

    The interval reflects only the choice of held-out examples. A metric also varies with the randomness of training.

    Args:
        scores: components of one metric, all with the same groups. Each resample draws the same groups for all components.
        draws: number of resamples. For each resample, as many groups as in the data are drawn with replacement.
        seed: seed of the resamples.
        level: fraction of the resampled means inside the interval.

    Returns:
        The ends of the interval, or None if resampling is not informative: if there are no examples, a score is not finite, or
        all resampled means are equal because all groups are equal.

    Raises:
        ValueError: if the scores do not have the same groups.

    >>> interval([Scores(np.array([1.0, 0.0, 0.5]), ["a", "b", "b"])], draws=100, seed=0)
    (0.25, 1.0)
    """
    tables = [_by_group(each) for each in scores]
    if any(not np.array_equal(names, tables[0][0]) for names, _, _ in tables):
        raise ValueError("all components of a metric must have the same groups")
    groups = len(tables[0][0]) if tables else 0
    if groups == 0 or not all(np.isfinite(sums).all() for _, sums, _ in tables):
        return None
    rng, step, chunks = np.random.default_rng(seed), max(1, MAX_DRAWN // groups), []
    for start in range(0, draws, step):
        drawn = rng.integers(groups, size=(min(step, draws - start), groups))
        parts = [sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1) for _, sums, sizes in tables]
        chunks.append(np.mean(parts, axis=0))
    means = np.concatenate(chunks)
    if np.allclose(means, means[0], rtol=1e-12, atol=0):
        return None
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def wilson_interval(fraction: float, count: int) -> tuple[float, float]:
    """Returns Wilson's 95% interval of a fraction of ``count`` independent examples (Newcombe, Statistics in Medicine 17, 1998,
    method 3). Unlike a bootstrap interval, it is never a single point, even if all examples are equal.

    >>> [round(end, 4) for end in wilson_interval(1.0, 5)]
    [0.5655, 1.0]
    """
    z = 1.959964
    centre = (fraction + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(fraction * (1 - fraction) / count + z**2 / (4 * count**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def paired_interval(differences: np.ndarray, draws: int = 10_000) -> tuple[float, float]:
    """Computes the 95% bootstrap interval of the mean difference between two methods that were measured on the same examples.

    Seeds and examples are both resampled. With few seeds, the interval is too narrow if seeds differ much; with one, it does not
    contain the difference between seeds at all.

    Args:
        differences: (seeds, examples).
        draws: number of resamples.
    """
    rng = np.random.default_rng(0)
    seeds, examples = differences.shape
    means = [
        differences[rng.integers(seeds, size=seeds)][:, rng.integers(examples, size=examples)].mean()
        for _ in range(draws)
    ]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def _by_group(scores: Scores) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the sorted names of the groups, and the sum and the number of scores of each group."""
    names, group_of = np.unique(np.asarray(scores.groups), return_inverse=True)
    sums = np.bincount(group_of, weights=scores.values, minlength=len(names))
    return names, sums, np.bincount(group_of, minlength=len(names))


def resampled(groups: Sequence[Any] | np.ndarray, draws: int, seed: int, chunk: int) -> Iterator[np.ndarray]:
    """Draws bootstrap resamples for statistics that :func:`interval` does not cover. Yields arrays (up to ``chunk``, N) float64,
    which contain how often each of N examples is drawn in each resample. Examples of a group are drawn together."""
    names, group_of = np.unique(np.asarray(groups), return_inverse=True)
    rng = np.random.default_rng(seed)
    for start in range(0, draws, chunk):
        counts = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=min(chunk, draws - start))
        yield counts[:, group_of].astype(np.float64)
