"""Recall at K, over whole matrices of scores or over each query's candidates."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RECALL_AT = (1, 5, 10)
"""K of the recalls that are reported (table 3)."""

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


def recall_at(scores: np.ndarray, matches: np.ndarray, ks: Sequence[int] = RECALL_AT) -> dict[int, float]:
    """Share of queries with a true candidate among the first K, for each K.

    >>> recall_at(np.array([[0.9, 0.1], [0.8, 0.7]]), np.eye(2, dtype=bool), ks=(1, 2))
    {1: 0.5, 2: 1.0}
    """
    ranks = ranks_of_first_match(scores, matches)
    return {k: float((ranks < k).mean()) for k in ks}


def retrieval_recalls(image_ranks: np.ndarray, text_ranks: np.ndarray, medium: str = "image") -> dict[str, float]:
    """Recalls both ways, their means over K = 1, 5, 10, and ``mean recall``, the mean of both (table 6's measure).

    Args:
        image_ranks: (I,) rank of each image's best true text (text retrieval, TR in table 3).
        text_ranks: (T,) rank of each text's image (image retrieval, IR).
        medium: "image" or "video", for the names.

    >>> retrieval_recalls(np.array([0, 6]), np.array([0, 0, 4, 11]))["mean recall"]
    0.6666666666666666
    """
    ways = {f"{medium} to text": image_ranks, f"text to {medium}": text_ranks}
    return _with_means({way: {k: float((ranks < k).mean()) for k in RECALL_AT} for way, ranks in ways.items()})


def chance_recalls(captions_per_image: np.ndarray, captions: int, medium: str = "image") -> dict[str, float]:
    """The recalls of a random order, under the names of :func:`retrieval_recalls`.

    An image with c of T captions has one among the first K with probability 1 - C(T - c, K) / C(T, K).

    >>> chance_recalls(np.array([1, 1, 2, 1]), 5)["text to image R@1"]
    0.25
    """
    by_image: dict[int, float] = {}
    for k in RECALL_AT:
        places = captions - np.arange(min(k, captions))
        missed = np.prod((places - captions_per_image[:, None]).clip(min=0) / places, axis=1)
        by_image[k] = float(1 - missed.mean())
    by_text = {k: min(1.0, k / len(captions_per_image)) for k in RECALL_AT}
    return _with_means({f"{medium} to text": by_image, f"text to {medium}": by_text})


def _with_means(ways: dict[str, dict[int, float]]) -> dict[str, float]:
    results: dict[str, float] = {}
    for way, recalls in ways.items():
        results |= {f"{way} R@{k}": recall for k, recall in recalls.items()}
        results[f"{way} mean"] = sum(recalls.values()) / len(recalls)
    results["mean recall"] = sum(results[f"{way} mean"] for way in ways) / len(ways)
    return results
