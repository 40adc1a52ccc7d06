"""CIDEr-D, which the standard COCO evaluation calls CIDEr."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from metrics.captions.ngrams import Ngram, count_ngrams

MAX_N = 4
SIGMA = 6.0
"""Standard deviation of the Gaussian penalty for length differences, in words."""


@dataclass(frozen=True)
class DocumentFrequencies:
    """For each n-gram, the number of images whose references contain the n-gram."""

    counts: Mapping[Ngram, float]
    images: float
    """Total number of images."""

    @classmethod
    def of(cls, references: Iterable[Sequence[str]]) -> DocumentFrequencies:
        """Counts n-grams in the tokenized references of each image."""
        counts: Counter[Ngram] = Counter()
        images = 0
        for image_references in references:
            images += 1
            counts.update({ngram for reference in image_references for ngram in count_ngrams(reference, MAX_N)})
        return cls(counts, images)


class CiderD:
    """Computes CIDEr-D with given document frequencies.

    A caption is represented by vectors of n-gram counts, weighted by inverse document frequency. The score is 10 times the mean
    cosine between the vectors of a candidate and a reference, over n = 1..4 and over references. Counts are clipped to the counts
    of the reference, and a difference in length is penalised (section 5 and appendix of the CIDEr paper). As in the standard
    evaluation, the length of a caption is its number of bigrams. The vectors of references are cached, so scoring is fast enough
    for every step of self-critical training.

    Args:
        frequencies: document frequencies of the evaluated references (in the standard evaluation) or of the training captions (in
            training).
        max_cached: maximum number of references to cache, about 7 kB each.
    """

    def __init__(self, frequencies: DocumentFrequencies, max_cached: int = 10_000) -> None:
        self.frequencies = frequencies
        self._log_images = math.log(frequencies.images) if frequencies.images else 0.0
        self._reference = lru_cache(max_cached)(self._vector)

    def scores(self, candidates: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
        """Computes the CIDEr-D (N,) of each candidate against the references of its image, in 0..10. Captions must be tokenized.

        >>> tokenized = [["a cat sits", "the cat"], ["a dog runs"]]
        >>> CiderD(DocumentFrequencies.of(tokenized)).scores(["a cat sits", "a cat sits"], tokenized).round(4)
        array([4.3664, 0.    ])
        """
        return np.array(
            [
                self._score(candidate, image_references)
                for candidate, image_references in zip(candidates, references, strict=True)
            ],
            dtype=np.float64,
        )

    def _vector(self, caption: str) -> tuple[dict[Ngram, float], list[float], int]:
        """Returns the weights of a caption's n-grams, the norm of the weights for each n, and the caption's length."""
        norms = [0.0] * MAX_N
        weights = {}
        for ngram, count in count_ngrams(caption, MAX_N).items():
            weight = count * (self._log_images - math.log(max(1.0, self.frequencies.counts.get(ngram, 0.0))))
            weights[ngram] = weight
            norms[len(ngram) - 1] += weight * weight
        return weights, [math.sqrt(norm) for norm in norms], max(0, len(caption.split()) - 1)

    def _score(self, candidate: str, references: Sequence[str]) -> float:
        weights, norms, length = self._vector(candidate)
        total = 0.0
        for reference in references:
            other_weights, other_norms, other_length = self._reference(reference)
            products = [0.0] * MAX_N
            for ngram, weight in weights.items():
                if other := other_weights.get(ngram):
                    products[len(ngram) - 1] += min(weight, other) * other
            cosines = (
                product / (norm * other_norm) if norm and other_norm else product
                for product, norm, other_norm in zip(products, norms, other_norms, strict=True)
            )
            total += sum(cosines) * math.exp(-((length - other_length) ** 2) / (2 * SIGMA**2))
        return 10 * total / MAX_N / len(references)


def cider_d(
    candidates: Sequence[str], references: Sequence[Sequence[str]], frequencies: DocumentFrequencies | None = None
) -> np.ndarray:
    """Computes the CIDEr-D (N,) of one candidate per image, in 0..10. The score of the corpus is the mean.

    Args:
        candidates: tokenized candidates.
        references: tokenized references of each image.
        frequencies: document frequencies; if None, they are computed from the references, as in the standard evaluation.
    """
    return CiderD(frequencies or DocumentFrequencies.of(references)).scores(candidates, references)
