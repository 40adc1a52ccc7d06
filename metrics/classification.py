"""Accuracy of classification, and consistency over groups of examples."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np


def accuracy(predicted: np.ndarray, true: np.ndarray) -> float:
    """Returns the fraction of equal entries of two (N,) arrays, or NaN for N = 0.

    >>> accuracy(np.array([1, 0, 1, 1]), np.array([1, 1, 1, 1]))
    0.75
    """
    return float((predicted == true).mean()) if len(true) else float("nan")


def consistency(correct: np.ndarray, groups: Sequence[str]) -> float:
    """Returns the fraction of groups whose items are all correct. This is the second metric of NLVR2, where a group contains all
    image pairs of a statement.

    >>> consistency(np.array([True, True, True, False]), ["a", "a", "b", "b"])
    0.5
    """
    return float(np.mean(list(all_correct(correct, groups).values()))) if len(groups) else float("nan")


def all_correct(correct: np.ndarray, groups: Sequence[str]) -> dict[str, bool]:
    """Returns for each group whether all of its items are correct. Groups are in the order of their first items."""
    correct_groups: defaultdict[str, bool] = defaultdict(lambda: True)
    for group, is_correct in zip(groups, correct.tolist(), strict=True):
        correct_groups[group] = correct_groups[group] and is_correct
    return dict(correct_groups)
