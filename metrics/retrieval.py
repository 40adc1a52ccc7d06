"""Recall at K, over whole matrices of scores or over each query's candidates."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

NOT_FOUND = np.iinfo(np.int64).max
"""Rank of a query none of whose true candidates was scored."""


def ranks_of_first_match(scores: np.ndarray, matches: np.ndarray) -> np.ndarray:
    """How many candidates stand before the best-ranked true one, (Q,) int64; ties count against the query.

    Args:
        scores: (Q, C), higher is better; -inf for candidates that were not scored.
        matches: (Q, C) bool; a row without a True has rank :data:`NOT_FOUND`.
    """
    best = np.where(matches, scores, -np.inf).max(axis=1, keepdims=True)
    before = ((scores >= best) & ~matches).sum(axis=1)
    return np.where(np.isneginf(best[:, 0]), NOT_FOUND, before)


def recall_at(scores: np.ndarray, matches: np.ndarray, ks: Sequence[int] = (1, 5, 10)) -> dict[int, float]:
    """Share of queries with a true candidate among the first K, for each K.

    >>> recall_at(np.array([[0.9, 0.1], [0.8, 0.7]]), np.eye(2, dtype=bool), ks=(1, 2))
    {1: 0.5, 2: 1.0}
    """
    ranks = ranks_of_first_match(scores, matches)
    return {k: float((ranks < k).mean()) for k in ks}


def retrieval_recalls(image_ranks: np.ndarray, text_ranks: np.ndarray) -> dict[str, float]:
    """Recalls both ways, their means over K = 1, 5, 10, and ``mean recall``, the mean of both (table 6's measure).

    Args:
        image_ranks: (I,) rank of each image's best true text (text retrieval, TR in table 3).
        text_ranks: (T,) rank of each text's image (image retrieval, IR).

    >>> retrieval_recalls(np.array([0, 6]), np.array([0, 0, 4, 11]))["mean recall"]
    0.6666666666666666
    """
    results: dict[str, float] = {}
    for name, ranks in (("image to text", image_ranks), ("text to image", text_ranks)):
        recalls = {k: float((ranks < k).mean()) for k in (1, 5, 10)}
        results |= {f"{name} R@{k}": recall for k, recall in recalls.items()}
        results[f"{name} mean"] = sum(recalls.values()) / 3
    results["mean recall"] = (results["image to text mean"] + results["text to image mean"]) / 2
    return results
