"""Sets of boxes: cases made by hand, an independent implementation of gRefCOCO's exact-match criterion, and COCO's average
precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.ops import generalized_box_iou

from metrics.box_sets import ScoredBoxes, average_precision, count_pairs, giou, is_exact
from metrics.grounding import iou
from utils.errors import UserError

A, B, C = (0.2, 0.2, 0.2, 0.2), (0.7, 0.7, 0.2, 0.2), (0.2, 0.7, 0.2, 0.2)
NEAR_A = (0.22, 0.2, 0.2, 0.2)
"""A box with IoU 0.82 with A."""


def boxes(*listed) -> np.ndarray:
    return np.array(listed, dtype=np.float64).reshape(-1, 4)


@pytest.mark.parametrize(
    ("predicted", "true", "exact"),
    [
        ([], [], True),
        ([A], [], False),
        ([], [A], False),
        ([NEAR_A], [A], True),
        ([B], [A], False),
        ([NEAR_A, B], [A, B], True),
        ([B, NEAR_A], [A, B], True),
        ([A], [A, B], False),
        ([A, B], [A], False),
        ([A, NEAR_A], [A, B], False),  # two predicted boxes for one object
        ([A, B, C], [C, A, B], True),
    ],
)
def test_a_set_is_correct_if_every_box_has_its_own_partner(predicted, true, exact):
    assert is_exact(boxes(*predicted), boxes(*true)) is exact
    assert is_exact(boxes(*predicted), boxes(*true), giou) is exact


def by_the_script(predicted: np.ndarray, true: np.ndarray) -> float:
    """F1 as defined by gRefCOCO's mdetr/datasets/refexp.py, implemented differently: with sets of free rows and columns, and
    torchvision's GIoU."""
    if not len(true):
        return float(not len(predicted))
    corners = [
        torch.tensor(np.concatenate([b[:, :2] - b[:, 2:] / 2, b[:, :2] + b[:, 2:] / 2], axis=1))
        for b in (predicted, true)
    ]
    overlaps = generalized_box_iou(*corners)
    rows, columns, hits = set(range(len(predicted))), set(range(len(true))), 0
    while rows and columns:
        best, row, column = max((float(overlaps[r, c]), r, c) for r in rows for c in columns)
        if best < 0.5:
            break
        rows, columns, hits = rows - {row}, columns - {column}, hits + 1
    return 2 * hits / (2 * hits + (len(predicted) - hits) + (len(true) - hits))


def test_the_rule_equals_the_official_script_on_random_sets():
    rng = np.random.default_rng(0)
    exact = 0
    for _ in range(2000):
        true = np.concatenate([rng.uniform(0.2, 0.8, (rng.integers(4), 2)), np.full((0, 2), 0.3)])
        true = np.concatenate([true, np.full((len(true), 2), 0.3)], axis=1)
        predicted = true[rng.permutation(len(true))][: rng.integers(5)] + rng.normal(0, 0.02, (1, 4))
        if rng.random() < 0.2:
            predicted = np.concatenate([predicted, rng.uniform(0.2, 0.5, (1, 4))])
        found = is_exact(predicted, true, giou)
        assert found == (by_the_script(predicted, true) == 1.0)
        exact += found
    assert 400 < exact < 1600


def test_pairs_are_matched_in_order_of_overlap():
    """The second prediction fits A better, and the first one must not be matched to another box then."""
    assert count_pairs(boxes(NEAR_A, A), boxes(A)) == 1
    assert count_pairs(boxes(NEAR_A, A, B), boxes(A, B)) == 2


@pytest.mark.parametrize("overlap", [iou, giou])
def test_an_overlap_of_exactly_the_threshold_makes_a_pair(overlap):
    """gRefCOCO's script stops at the first overlap below the threshold (``if top_value < self.thresh_iou: break``)."""
    whole, half = boxes((0.5, 0.5, 1.0, 1.0)), boxes((0.25, 0.5, 0.5, 1.0))
    assert overlap(whole, half).tolist() == [0.5]
    assert count_pairs(half, whole, overlap) == 1
    assert count_pairs(half, whole, overlap, threshold=0.51) == 0


def test_a_score_of_exactly_the_threshold_is_kept():
    found = ScoredBoxes(boxes(A, B, C), np.array([0.5, 0.7, 0.25]))
    assert found.above(0.5).tolist() == boxes(A, B).tolist()
    assert found.best.tolist() == boxes(B).tolist()


def test_giou_equals_torchvisions():
    rng = np.random.default_rng(1)
    one, other = rng.uniform(0.1, 0.9, (100, 4)), rng.uniform(0.1, 0.9, (100, 4))
    corners = [
        torch.tensor(np.concatenate([b[:, :2] - b[:, 2:] / 2, b[:, :2] + b[:, 2:] / 2], axis=1)) for b in (one, other)
    ]
    np.testing.assert_allclose(giou(one, other), generalized_box_iou(*corners).diagonal().numpy(), atol=1e-12)


SIZES = np.array([[100, 80], [64, 64]])


def test_average_precision_equals_a_hand_computed_value():
    """The first detection finds an object, the second is wrong, and the third finds another object: precision is 1 up to recall
    1/2, and 2/3 after it."""
    found = [ScoredBoxes(boxes(A, B), np.array([0.9, 0.8])), ScoredBoxes(boxes(C), np.array([0.7]))]
    mean, at_half = average_precision(found, [boxes(A), boxes(C)], SIZES)
    recalls = np.linspace(0, 1, 101)
    assert at_half == pytest.approx(np.where(recalls <= 0.5, 1, 2 / 3).mean(), abs=1e-6)
    assert mean == pytest.approx(at_half)


def test_average_precision_counts_boxes_for_phrases_without_boxes():
    found = [ScoredBoxes(boxes(A), np.array([0.6])), ScoredBoxes(boxes(C), np.array([0.7]))]
    assert average_precision(found, [boxes(A), boxes()], SIZES)[1] == pytest.approx(0.5)
    assert np.isnan(average_precision(found, [boxes(), boxes()], SIZES)[0])


def test_average_precision_without_any_predicted_box_is_zero():
    nothing = ScoredBoxes(boxes(), np.zeros(0))
    assert average_precision([nothing, nothing], [boxes(A), boxes()], SIZES) == (0.0, 0.0)


def test_boxes_that_are_not_finite_are_an_error():
    found = [ScoredBoxes(np.full((1, 4), np.nan), np.array([0.6]))]
    with pytest.raises(UserError, match="finite"):
        average_precision(found, [boxes(A)], SIZES[:1])
    with pytest.raises(UserError, match="finite"):
        is_exact(found[0].boxes, boxes(A))
