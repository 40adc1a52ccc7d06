"""BLEU over a corpus of captions."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from metrics.captions.ngrams import count_ngrams

_NO_MATCH = 1e-15
_NO_GUESS = 1e-9
"""Small numbers that the standard COCO evaluation adds to matches and lengths to avoid division by 0."""


def corpus_bleu(candidates: Sequence[str], references: Sequence[Sequence[str]], max_n: int = 4) -> list[float]:
    """Computes BLEU-1 to BLEU-``max_n`` in 0..1, for one candidate per image, like the standard evaluation.

    Counts are summed over the corpus. The reference length of a candidate is the length of the reference that is closest in
    length; if two references are equally close, it is the shorter length. In captions, tokens are separated by spaces
    (:func:`metrics.captions.ptb.tokenize`).

    >>> [round(score, 4) for score in corpus_bleu(["a dog runs"], [["a dog runs fast"]], max_n=2)]
    [0.7165, 0.7165]
    """
    length = reference_length = 0
    guesses, matches = [0] * max_n, [0] * max_n
    for candidate, image_references in zip(candidates, references, strict=True):
        counts = count_ngrams(candidate, max_n)
        max_counts: Counter[tuple[str, ...]] = Counter()
        for reference in image_references:
            max_counts |= count_ngrams(reference, max_n)
        words = len(candidate.split())
        length += words
        reference_length += min((abs(len(each.split()) - words), len(each.split())) for each in image_references)[1]
        for n in range(max_n):
            guesses[n] += max(0, words - n)
        for ngram, count in counts.items():
            matches[len(ngram) - 1] += min(count, max_counts[ngram])

    ratio = (length + _NO_MATCH) / (reference_length + _NO_GUESS)
    brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    scores, product = [], 1.0
    for n in range(max_n):
        product *= (matches[n] + _NO_MATCH) / (guesses[n] + _NO_GUESS)
        scores.append(product ** (1 / (n + 1)) * brevity)
    return scores
