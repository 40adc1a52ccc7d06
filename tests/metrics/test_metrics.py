"""Metrics with worked examples."""

import doctest

import numpy as np
import pytest

from metrics import grounding, retrieval


@pytest.mark.parametrize("module", [grounding, retrieval])
def test_the_examples_in_the_docstrings_hold(module):
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


def test_recall_counts_the_best_of_several_true_candidates():
    scores = np.array([[0.1, 0.9, 0.5, 0.4]])
    matches = np.array([[True, False, False, True]])
    assert retrieval.recall_at(scores, matches, ks=(1, 2, 3, 4)) == {1: 0.0, 2: 0.0, 3: 1.0, 4: 1.0}


def test_a_tie_counts_against_the_query():
    assert retrieval.recall_at(np.zeros((3, 3)), np.eye(3, dtype=bool), ks=(1,)) == {1: 0.0}


def test_a_candidate_that_was_not_scored_is_never_found():
    scores = np.array([[-np.inf, 0.3]])
    assert retrieval.recall_at(scores, np.array([[True, False]]), ks=(1,)) == {1: 0.0}


def test_iou_of_known_boxes():
    a = np.array([[0.5, 0.5, 1, 1], [0.25, 0.25, 0.5, 0.5], [0.2, 0.2, 0.2, 0.2], [0.5, 0.5, 0, 0]])
    b = np.array([[0.5, 0.5, 1, 1], [0.5, 0.25, 0.5, 0.5], [0.8, 0.8, 0.2, 0.2], [0.5, 0.5, 0, 0]])
    np.testing.assert_allclose(grounding.iou(a, b), [1, 1 / 3, 0, 0])
    assert grounding.accuracy_at_iou(a, b) == 0.25
    assert np.isnan(grounding.accuracy_at_iou(a[:0], b[:0]))
