"""Calibration: converts a model's scores to probabilities, with a map that is fitted to held-out examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import isotonic_regression, minimize
from scipy.special import expit
from scipy.stats import rankdata

FOLDS = 5

BINS = 15
"""Number of equally wide bins of the calibration error, as in Guo et al. 2017 (arXiv:1706.04599)."""

RIDGE = 1e-4
"""Weight of the squared coefficients in the loss, which stay finite even if the examples can be separated without error."""

SMALLEST = 1e-4
"""Probabilities of the isotonic map lie between this and one minus this, because no finite sample shows that something is
certain."""


@dataclass(frozen=True)
class Calibration:
    """A map from F scores to a probability.

    The probability is the sigmoid of ``weights @ scores + offset`` (Platt 1999) or, if there are ``knots``, a function of this
    sum that is linear between the knots and constant beyond them (isotonic regression, Zadrozny and Elkan 2002). No weight is
    negative, so a higher score never lowers the probability.

    Attributes:
        weights: the weight of each score.
        offset: added to the weighted sum.
        knots: pairs of a sum and its probability, in increasing order; empty for the sigmoid.
    """

    weights: tuple[float, ...]
    offset: float
    knots: tuple[tuple[float, float], ...] = ()

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        """Returns the probabilities (…) of scores (…, F)."""
        sums = np.asarray(scores, np.float64) @ np.array(self.weights) + self.offset
        if self.knots:
            return np.interp(sums, *np.array(self.knots).T)
        return np.asarray(expit(sums))


@dataclass(frozen=True)
class ModelCalibration:
    """The calibration of a model.

    Attributes:
        match: converts the scores of a box and a phrase to the probability that the phrase describes the box.
        present: converts the scores of a phrase in an image to the probability that it is somewhere in the image.
    """

    match: Calibration
    present: Calibration


def fit_sigmoid(scores: np.ndarray, labels: np.ndarray) -> Calibration:
    """Fits the weights and the offset of a sigmoid to N examples by minimising the log loss.

    Args:
        scores: (N, F).
        labels: (N,) 0 or 1.
    """
    mean, spread = scores.mean(axis=0), scores.std(axis=0) + 1e-12
    standardised = (scores - mean) / spread

    def loss_and_gradient(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        logits = standardised @ parameters[:-1] + parameters[-1]
        loss = np.mean(np.logaddexp(0, logits) - labels * logits) + RIDGE * np.sum(parameters[:-1] ** 2)
        errors = (expit(logits) - labels) / len(labels)
        slopes = standardised.T @ errors + 2 * RIDGE * parameters[:-1]
        return float(loss), np.append(slopes, errors.sum())

    count = scores.shape[1]
    bounds = [(0, None)] * count + [(None, None)]
    found = minimize(loss_and_gradient, np.ones(count + 1), jac=True, method="L-BFGS-B", bounds=bounds).x
    weights = found[:-1] / spread
    return Calibration(tuple(weights.tolist()), float(found[-1] - weights @ mean))


def fit_isotonic(scores: np.ndarray, labels: np.ndarray) -> Calibration:
    """Fits a sigmoid as :func:`fit_sigmoid` does, and replaces it with the non-decreasing function of the same sum that has the
    least squared error."""
    linear = fit_sigmoid(scores, labels)
    sums, inverse, counts = np.unique(
        scores @ np.array(linear.weights) + linear.offset, return_inverse=True, return_counts=True
    )
    steps = isotonic_regression(np.bincount(inverse, weights=labels) / counts, weights=counts)
    # Each step, on which the probability is constant, needs only its two ends.
    ends = np.unique(np.concatenate([steps.blocks[:-1], steps.blocks[1:] - 1]))
    probabilities = steps.x[ends].clip(SMALLEST, 1 - SMALLEST)
    return replace(linear, knots=tuple(zip(sums[ends].tolist(), probabilities.tolist(), strict=True)))


Fit = Callable[[np.ndarray, np.ndarray], Calibration]

KINDS: dict[str, Fit] = {"sigmoid": fit_sigmoid, "isotonic": fit_isotonic}


class Fitted(NamedTuple):
    """A calibration that was fitted to N examples.

    Attributes:
        calibration: the map, fitted to all examples.
        kind: its kind, a key of :data:`KINDS`.
        held_out: probability (N,) of each example, from a map that was fitted without the example's group.
    """

    calibration: Calibration
    kind: str
    held_out: np.ndarray


def fit(scores: np.ndarray, labels: np.ndarray, groups: Sequence[Any]) -> Fitted:
    """Fits the kind of map that has the lower log loss in cross-validation.

    Args:
        scores: (N, F) finite scores, of which higher ones should mean higher probabilities.
        labels: (N,) 0 or 1.
        groups: the group of each example, such as its image. A group is never divided among folds.

    Raises:
        ValueError: if there are fewer than :data:`FOLDS` groups, or no fold can be fitted because a label is too rare.
    """
    _, numbers = np.unique(np.asarray(groups), return_inverse=True)
    fold = np.random.default_rng(0).permutation(int(numbers.max()) + 1)[numbers] % FOLDS
    for number in range(FOLDS):
        if numbers.max() + 1 < FOLDS or not 0 < labels[fold != number].mean() < 1:
            raise ValueError(f"{len(labels)} examples in {numbers.max() + 1} images are too few")
    held_out = {name: np.zeros(len(labels)) for name in KINDS}
    for name, fit_kind in KINDS.items():
        for number in range(FOLDS):
            chosen = fold == number
            held_out[name][chosen] = fit_kind(scores[~chosen], labels[~chosen])(scores[chosen])
    kind = min(KINDS, key=lambda name: log_loss(held_out[name], labels))
    return Fitted(KINDS[kind](scores, labels), kind, held_out[kind])


def log_loss(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Returns the mean log loss of probabilities (N,) with labels (N,) 0 or 1. Certainty costs no more than it does at
    :data:`SMALLEST`."""
    given = np.where(labels == 1, probabilities, 1 - probabilities)
    return float(-np.mean(np.log(given.clip(SMALLEST))))


class Reliability(NamedTuple):
    """The bins of probabilities that are not empty, (K,) each: the number of examples, their mean probability, and the share of
    them that are true."""

    counts: np.ndarray
    probabilities: np.ndarray
    shares: np.ndarray

    @property
    def error(self) -> float:
        """The expected calibration error: the mean distance between probability and share, weighted by the number of examples."""
        return float(np.average(np.abs(self.probabilities - self.shares), weights=self.counts))


def reliability(probabilities: np.ndarray, labels: np.ndarray) -> Reliability:
    """Divides examples with ``probabilities`` (N,) and ``labels`` (N,) 0 or 1 into :data:`BINS` bins of equal width.

    >>> round(reliability(np.array([0.9, 0.9, 0.1, 0.1]), np.array([1, 1, 0, 1])).error, 2)
    0.25
    """
    bins = np.minimum((probabilities * BINS).astype(int), BINS - 1)
    counts = np.bincount(bins, minlength=BINS)
    filled = counts > 0
    sums = [np.bincount(bins, weights=values, minlength=BINS)[filled] for values in (probabilities, labels)]
    return Reliability(counts[filled], *(total / counts[filled] for total in sums))


def area_under_roc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Returns the area under the ROC curve: the probability that a true example has a higher score than a false one (Mann-Whitney
    U; a tie counts half). ``scores`` and ``labels``, 0 or 1, are (N,).

    >>> area_under_roc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([0, 0, 1, 1]))
    0.75
    """
    ranks = rankdata(scores)
    true = labels == 1
    return float((ranks[true].sum() - true.sum() * (true.sum() + 1) / 2) / (true.sum() * (~true).sum()))
