"""Recall at K, computed from score matrices or ranks."""

from __future__ import annotations

import numpy as np

from metrics.bootstrap import Scores
from metrics.finite import check_finite

RECALL_AT = (1, 5, 10)
"""The values of K for which recall is reported (table 3 of the paper)."""

NO_MATCH = np.iinfo(np.int64).max
"""Rank of a query none of whose true candidates were scored."""


def ranks_of_first_match(scores: np.ndarray, matches: np.ndarray) -> np.ndarray:
    """Returns the rank (Q,) of each query's best true candidate, counted from 0. Ties count against the query. If none of a
    query's true candidates were scored, the rank is :data:`NO_MATCH`.

    Args:
        scores: (Q, C), higher is better; -inf for candidates that were not scored.
        matches: (Q, C) bool, True = true candidate.

    Raises:
        UserError: if a score is NaN or +inf.
    """
    check_finite(scores, "scores of candidates", unscored=True)
    best = np.where(matches, scores, -np.inf).max(axis=1, keepdims=True)
    ranked_above = ((scores >= best) & ~matches).sum(axis=1)
    return np.where(np.isneginf(best[:, 0]), NO_MATCH, ranked_above)


def retrieval_recalls(image_ranks: np.ndarray, text_ranks: np.ndarray, medium: str = "image") -> dict[str, float]:
    """Computes recalls in both directions, their means over K = 1, 5, 10, and ``mean recall``, the mean over both directions (as
    in table 6 of the paper).

    Args:
        image_ranks: (I,), rank of each image's best true text (text retrieval, TR in table 3).
        text_ranks: (T,), rank of each text's image (image retrieval, IR in table 3).
        medium: "image" or "video", for the names of the metrics.

    >>> retrieval_recalls(np.array([0, 6]), np.array([0, 0, 4, 11]))["mean recall"]
    0.6666666666666666
    """
    directions = {f"{medium} to text": image_ranks, f"text to {medium}": text_ranks}
    return _with_means(
        {direction: {k: float((ranks < k).mean()) for k in RECALL_AT} for direction, ranks in directions.items()}
    )


def recall_scores(
    image_ranks: np.ndarray, text_ranks: np.ndarray, image_of_text: np.ndarray, medium: str = "image"
) -> dict[str, tuple[Scores, ...]]:
    """Computes the scores of individual queries. Their means are the metrics of :func:`retrieval_recalls`, with the same names.

    Texts are grouped by image. The mean over both directions has two components.

    Args:
        image_ranks, text_ranks, medium: see :func:`retrieval_recalls`.
        image_of_text: (T,), index of each text's image.
    """
    directions = {
        f"{medium} to text": (image_ranks, np.arange(len(image_ranks))),
        f"text to {medium}": (text_ranks, image_of_text),
    }
    scores: dict[str, tuple[Scores, ...]] = {}
    for direction, (ranks, groups) in directions.items():
        hits = {k: ranks < k for k in RECALL_AT}
        scores |= {f"{direction} R@{k}": (Scores(hits_at_k, groups),) for k, hits_at_k in hits.items()}
        scores[f"{direction} mean"] = (Scores(np.mean(list(hits.values()), axis=0), groups),)
    scores["mean recall"] = tuple(scores[f"{direction} mean"][0] for direction in directions)
    return scores


def chance_recalls(captions_per_image: np.ndarray, captions: int, medium: str = "image") -> dict[str, float]:
    """Computes the expected recalls if candidates are ranked at random, with the names of :func:`retrieval_recalls`.

    If an image has c of the T captions, at least one of its captions is among the first K with probability
    1 - C(T - c, K) / C(T, K).

    >>> chance_recalls(np.array([1, 1, 2, 1]), 5)["text to image R@1"]
    0.25
    """
    by_image: dict[int, float] = {}
    for k in RECALL_AT:
        remaining = captions - np.arange(min(k, captions))
        missed = np.prod((remaining - captions_per_image[:, None]).clip(min=0) / remaining, axis=1)
        by_image[k] = float(1 - missed.mean())
    by_text = {k: min(1.0, k / len(captions_per_image)) for k in RECALL_AT}
    return _with_means({f"{medium} to text": by_image, f"text to {medium}": by_text})


def _with_means(directions: dict[str, dict[int, float]]) -> dict[str, float]:
    results: dict[str, float] = {}
    for direction, recalls in directions.items():
        results |= {f"{direction} R@{k}": recall for k, recall in recalls.items()}
        results[f"{direction} mean"] = sum(recalls.values()) / len(recalls)
    results["mean recall"] = sum(results[f"{direction} mean"] for direction in directions) / len(directions)
    return results
