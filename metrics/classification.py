"""Accuracy of classes, and consistency over groups."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np


def accuracy(predicted: np.ndarray, true: np.ndarray) -> float:
    """Share of equal entries; NaN for none.

    >>> accuracy(np.array([1, 0, 1, 1]), np.array([1, 1, 1, 1]))
    0.75
    """
    return float((predicted == true).mean()) if len(true) else float("nan")


def consistency(right: np.ndarray, groups: Sequence[str]) -> float:
    """Share of groups all of whose items are right: NLVR2's second measure, over the pairs of each statement.

    >>> consistency(np.array([True, True, True, False]), ["a", "a", "b", "b"])
    0.5
    """
    whole: defaultdict[str, bool] = defaultdict(lambda: True)
    for group, is_right in zip(groups, right.tolist(), strict=True):
        whole[group] = whole[group] and is_right
    return float(np.mean(list(whole.values()))) if whole else float("nan")
