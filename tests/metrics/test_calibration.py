"""Maps from scores to probabilities."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit

from metrics.calibration import area_under_roc, fit, fit_isotonic, fit_sigmoid, reliability


def drawn(probability, count=20_000, seed=0):
    """Scores (N, 2), of which the second means nothing, and labels that are true with ``probability`` of the first."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(0, 2, (count, 2))
    labels = (rng.random(count) < probability(scores[:, 0])).astype(float)
    return scores, labels


def test_the_weights_of_a_sigmoid_are_found():
    scores, labels = drawn(lambda score: expit(0.5 * score - 1))
    found = fit_sigmoid(scores, labels)
    assert found.weights == pytest.approx((0.5, 0), abs=0.05) and found.offset == pytest.approx(-1, abs=0.05)
    assert found(np.array([[2.0, 0.0], [0.0, 0.0]])) == pytest.approx(expit([0, -1]), abs=0.02)


def test_a_step_is_found_by_isotonic_regression_and_chosen_by_cross_validation():
    scores, labels = drawn(lambda score: np.where(score > 0.5, 0.9, 0.2))
    groups = np.arange(len(labels)) // 4
    fitted = fit(scores, labels, groups)
    assert fitted.kind == "isotonic"
    assert fitted.calibration(np.array([[-2.0, 0.0], [2.0, 0.0]])) == pytest.approx([0.2, 0.9], abs=0.03)
    assert reliability(fitted.held_out, labels).error < 0.02 < reliability(expit(scores[:, 0]), labels).error
    assert fit(*drawn(lambda score: expit(score), 400), np.arange(400)).kind == "sigmoid"


def test_a_higher_score_never_lowers_the_probability():
    scores, labels = drawn(lambda score: expit(-score), 500)
    for found in (fit_sigmoid(scores, labels), fit_isotonic(scores, labels)):
        assert min(found.weights) >= 0
        steps = np.linspace(-20, 20, 100)[:, None] * [1, 1]
        assert (np.diff(found(steps)) >= 0).all() and 0 < found(steps).min() <= found(steps).max() < 1


def test_examples_that_can_be_separated_give_finite_weights():
    scores, labels = np.array([[-1.0], [-2.0], [1.0], [2.0]] * 25), np.array([0.0, 0.0, 1.0, 1.0] * 25)
    found = fit_sigmoid(scores, labels)
    assert 0 < found.weights[0] < 100 and found(scores)[labels == 1].min() > 0.95


def test_no_group_is_divided_among_folds():
    scores = np.repeat(np.random.default_rng(0).normal(size=(50, 1)), 40, axis=0)
    labels = np.repeat(np.random.default_rng(1).integers(0, 2, 50).astype(float), 40)
    fitted = fit(scores, labels, np.repeat(np.arange(50), 40))
    # The labels mean nothing, which isotonic regression could only miss if copies of a group were in another fold.
    assert area_under_roc(fitted.held_out, labels) < 0.65


@pytest.mark.parametrize("labels", [np.ones(100), np.append(np.zeros(99), 1.0)])
def test_too_few_examples_are_an_error(labels):
    with pytest.raises(ValueError, match="too few"):
        fit(np.zeros((100, 1)), labels, np.arange(100))
    with pytest.raises(ValueError, match="too few"):
        fit(np.zeros((4, 1)), np.array([0.0, 1.0, 0.0, 1.0]), np.arange(4))


def test_the_area_under_the_roc_curve_counts_pairs():
    rng = np.random.default_rng(0)
    scores, labels = rng.integers(0, 6, 60).astype(float), rng.integers(0, 2, 60)
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[labels == 1] for b in scores[labels == 0]]
    assert area_under_roc(scores, labels) == pytest.approx(np.mean(pairs))
