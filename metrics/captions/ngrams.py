"""N-grams of tokenized captions."""

from __future__ import annotations

from collections import Counter

Ngram = tuple[str, ...]


def count_ngrams(caption: str, max_n: int = 4) -> Counter[Ngram]:
    """How often each n-gram of 1 to ``max_n`` words occurs; words are what white space of any kind divides.

    >>> count_ngrams("a b a", 2)[("a",)]
    2
    """
    words = caption.split()
    return Counter(tuple(words[start : start + n]) for n in range(1, max_n + 1) for start in range(len(words) - n + 1))
