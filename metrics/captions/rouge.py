"""ROUGE-L of captions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

BETA = 1.2
"""Weight of recall relative to precision in the standard evaluation."""


def rouge_l(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """Computes the ROUGE-L (N,) of one candidate per image in 0..1, like the standard COCO evaluation. The score of the corpus is
    the mean.

    Precision and recall are each the maximum over the references. Captions are split at single spaces, so an empty caption has
    one empty word.

    >>> rouge_l(["a dog runs fast"], [["a dog runs"]]).round(4)
    array([0.8798])
    """
    scores = []
    for candidate, image_references in zip(candidates, references, strict=True):
        words = candidate.split(" ")
        lengths = [
            (_common(words, reference), len(reference)) for reference in (each.split(" ") for each in image_references)
        ]
        precision = max(common for common, _ in lengths) / len(words)
        recall = max(common / length for common, length in lengths)
        weighted = recall + BETA**2 * precision
        scores.append((1 + BETA**2) * precision * recall / weighted if weighted else 0.0)
    return np.array(scores)


def _common(first: Sequence[str], second: Sequence[str]) -> int:
    """Returns the length of the longest common subsequence."""
    above = [0] * (len(second) + 1)
    for word in first:
        row = [0]
        for index, other in enumerate(second):
            row.append(above[index] + 1 if word == other else max(above[index + 1], row[-1]))
        above = row
    return above[-1]
