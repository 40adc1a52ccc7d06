"""Metrics with worked examples."""

import doctest
import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from metrics import classification, grounding, retrieval
from tests.messages import naming
from utils.errors import UserError

HELPERS = json.loads((Path(__file__).parent.parent / "golden/data_helpers.json").read_text())


@pytest.mark.parametrize("module", [classification, grounding, retrieval])
def test_the_examples_in_the_docstrings_hold(module):
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


def test_the_best_of_several_true_candidates_determines_the_rank():
    scores = np.array([[0.1, 0.9, 0.5, 0.4]])
    matches = np.array([[True, False, False, True]])
    assert retrieval.ranks_of_first_match(scores, matches).tolist() == [2]


def test_a_tie_counts_against_the_query():
    assert retrieval.ranks_of_first_match(np.zeros((3, 3)), np.eye(3, dtype=bool)).tolist() == [2, 2, 2]


def test_a_candidate_that_was_not_scored_is_never_found():
    scores = np.array([[-np.inf, 0.3]])
    assert retrieval.ranks_of_first_match(scores, np.array([[True, False]])).tolist() == [retrieval.NO_MATCH]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_scores_are_an_error_instead_of_a_hit(value):
    """Every comparison with NaN is false, so NaN would count as the first of all candidates."""
    with pytest.raises(UserError, match=naming("1 of 4", "scores", "NaN")):
        retrieval.ranks_of_first_match(np.array([[0.1, value], [0.2, 0.3]]), np.eye(2, dtype=bool))
    box = np.array([[0.5, 0.5, 1.0, 1.0]])
    for measure in (grounding.iou, grounding.pixel_iou):
        with pytest.raises(UserError, match=naming("1 of 8", "boxes", "NaN")):
            measure(box * [value, 1, 1, 1], box)


def test_iou_equals_known_values():
    a = np.array([[0.5, 0.5, 1, 1], [0.25, 0.25, 0.5, 0.5], [0.2, 0.2, 0.2, 0.2], [0.5, 0.5, 0, 0]])
    b = np.array([[0.5, 0.5, 1, 1], [0.5, 0.25, 0.5, 0.5], [0.8, 0.8, 0.2, 0.2], [0.5, 0.5, 0, 0]])
    np.testing.assert_allclose(grounding.iou(a, b), [1, 1 / 3, 0, 0])
    assert grounding.accuracy_at_iou(a, b) == 0.25
    assert np.isnan(grounding.accuracy_at_iou(a[:0], b[:0]))


def test_pixel_iou_equals_the_published_one():
    pairs = HELPERS["computeIoU_xywh"]
    first, second = (np.array([pair[key] for pair in pairs]) for key in ("b1", "b2"))
    expected = [pair["iou"] for pair in pairs]
    np.testing.assert_allclose(grounding.pixel_iou(first, second), expected, rtol=1e-12)
    assert any(expected)


def test_pixel_iou_differs_from_plain_iou_only_if_boxes_hardly_touch():
    boxes = np.array([[10.0, 10.0, 20.0, 20.0]])
    for shift, equal in ((0, True), (17.5, True), (19.5, False)):
        other = boxes + np.array([[shift, 0, 0, 0]])
        centred = [np.concatenate([box[:, :2] + box[:, 2:] / 2, box[:, 2:]], axis=1) for box in (boxes, other)]
        plain = grounding.iou(*centred)
        assert (grounding.pixel_iou(boxes, other) == pytest.approx(plain)) == equal
        assert plain > 0


def test_consistency_needs_every_pair_of_a_statement():
    right = np.array([True, False, True])
    assert classification.consistency(right, ["a", "a", "b"]) == 0.5
    assert classification.consistency(~right, ["a", "a", "b"]) == 0.0
    assert np.isnan(classification.consistency(right[:0], []))


def test_a_query_without_a_true_candidate_is_never_found():
    ranks = retrieval.ranks_of_first_match(np.array([[0.3, 0.2]]), np.zeros((1, 2), dtype=bool))
    assert ranks.tolist() == [retrieval.NO_MATCH]


@pytest.mark.parametrize("captions_of", [[1], [1, 3], [1, 1, 2, 1], [2, 2, 2]])
def test_the_chance_of_a_recall_is_its_mean_over_all_orders_of_the_candidates(captions_of):
    """This includes R@5 and R@10 of fewer than five or ten candidates, which are always found."""
    images, image_of_text = range(len(captions_of)), np.repeat(np.arange(len(captions_of)), captions_of)
    orders = np.array(list(itertools.permutations(image_of_text)))
    ranks = np.stack([(orders == image).argmax(axis=1) for image in images])
    of_texts = np.array(list(itertools.permutations(images))).T  # the rank of each image, for each order
    found = retrieval.chance_recalls(np.array(captions_of), len(image_of_text))
    for k in retrieval.RECALL_AT:
        assert found[f"image to text R@{k}"] == pytest.approx((ranks < k).mean()), k
        assert found[f"text to image R@{k}"] == pytest.approx((of_texts < k).mean()), k
    assert found["image to text mean"] == pytest.approx(np.mean([(ranks < k).mean() for k in (1, 5, 10)]))


def test_recalls_are_the_means_of_the_scores_per_query():
    rng = np.random.default_rng(0)
    image_of_text = np.repeat(np.arange(20), 3)
    ranks = rng.integers(15, size=20), rng.integers(15, size=60)
    recalls = retrieval.retrieval_recalls(*ranks, "video")
    scores = retrieval.recall_scores(*ranks, image_of_text, "video")
    assert scores.keys() == recalls.keys()
    for name, parts in scores.items():
        assert np.mean([part.mean() for part in parts]) == pytest.approx(recalls[name]), name
        assert all(set(part.groups) == set(range(20)) for part in parts)
    assert [len(scores[name]) for name in ("mean recall", "video to text mean")] == [2, 1]
