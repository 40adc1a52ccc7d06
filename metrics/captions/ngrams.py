"""N-grams of tokenized captions."""

from __future__ import annotations

from collections import Counter

Ngram = tuple[str, ...]


def count_ngrams(caption: str, max_n: int = 4) -> Counter[Ngram]:
    """Counts the n-grams of 1 to ``max_n`` words. Words are separated by any white space.

    >>> count_ngrams("a b a", 2)[("a",)]
    2
    """
    words = caption.split()
    return Counter(tuple(words[start : start + n]) for n in range(1, max_n + 1) for start in range(len(words) - n + 1))
