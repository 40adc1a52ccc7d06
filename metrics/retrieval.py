"""Recall at K over a matrix of scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def ranks_of_first_match(scores: np.ndarray, matches: np.ndarray) -> np.ndarray:
    """How many candidates stand before the best-ranked true one, (Q,); ties count against the query.

    Args:
        scores: (Q, C), higher is better; -inf for candidates that were not scored.
        matches: (Q, C) bool, at least one True in each row.
    """
    best = np.where(matches, scores, -np.inf).max(axis=1, keepdims=True)
    return ((scores >= best) & ~matches).sum(axis=1)


def recall_at(scores: np.ndarray, matches: np.ndarray, ks: Sequence[int] = (1, 5, 10)) -> dict[int, float]:
    """Share of queries with a true candidate among the first K, for each K.

    >>> recall_at(np.array([[0.9, 0.1], [0.8, 0.7]]), np.eye(2, dtype=bool), ks=(1, 2))
    {1: 0.5, 2: 1.0}
    """
    ranks = ranks_of_first_match(scores, matches)
    return {k: float((ranks < k).mean()) for k in ks}
