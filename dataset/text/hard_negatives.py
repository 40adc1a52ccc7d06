"""Hard negative texts: texts that resemble a caption but differ from it in one detail, so that they are wrong about its image."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np

from dataset.config import HardNegativesConfig
from utils.sequences import shuffled

_CONTRADICTIONS = """
red / orange / yellow / green / cyan turquoise / blue / purple violet / pink / brown / black / white / gray grey
small little tiny / large big huge
striped / dotted spotted / checked checkered
wooden / metal metallic / plastic / leather
two / three / four / five / six / seven / eight / nine / ten
left / right
leftmost / rightmost
above / below beneath underneath
upper / lower
topmost / bottommost
inside / outside
open / closed
full / empty
young / old
wet / dry
with / without
"""
"""Words that contradict each other, one set per line. If a text is true with one word of a line, it is usually wrong with another
word of that line, except for the synonyms between two slashes."""

NEAR = 4
"""Number of words in which an attribute and the noun it describes are searched: the attribute and the words after it or, after
"is" and "are", the words before it."""

_CONNECTING = ("and", "the", "with", "her", "his", "its", "their")
"""Words that may be between an attribute and the noun it describes, apart from words of one or two letters."""

_SIDES = ("left", "right")
_BEFORE_A_SIDE, _AFTER_A_SIDE = ("the", "far"), ("of", "side", "hand", "arm", "eye", "foot", "leg")
"""Words that precede or follow "left" and "right" if these name a side. "left" may also mean "went", and "right" may mean
"correct"."""

_NOT_NOUNS = re.compile(
    "an?|the|and|or|but|with|without|that|which|who|while|is|are|was|were|on|in|at|of|to|by|for|from|near|next|under|over|above|below|"
    "behind|beside"
)
"""If one of these words follows "orange", "orange" means the fruit."""
_NOT_COLOURS = (["black", "and", "white"], ["black", "&", "white"], ["black", "white"])
"""Phrases that describe a whole picture or a pattern; replacing one of their words would not make the text wrong."""


def _by_word() -> dict[str, list[str]]:
    """Returns the words that contradict each word."""
    found: dict[str, list[str]] = {}
    for line in _CONTRADICTIONS.strip().splitlines():
        meanings = [meaning.split() for meaning in line.split("/")]
        for own in meanings:
            others = [word for meaning in meanings if meaning is not own for word in meaning]
            found |= dict.fromkeys(own, others)
    return found


_CONTRADICTING = _by_word()


def hard_negatives(
    config: HardNegativesConfig,
    text: str,
    given: Sequence[str],
    truths: Sequence[str],
    rng: np.random.Generator,
    *,
    english: bool = True,
) -> list[str]:
    """Returns up to ``config.count`` different hard negatives of a text.

    Args:
        config: number and sources of the hard negatives.
        text: the cleaned text.
        given: cleaned texts that are known to be wrong.
        truths: all cleaned texts that are true of the image and its boxes.
        rng: source of randomness.
        english: whether the text is in English. In other languages, only the given hard negatives are used.
    """
    known = list(dict.fromkeys((text, *truths)))
    by_source: list[list[str]] = []
    for source in shuffled(rng, config.sources):
        if source == "given":
            by_source.append(shuffled(rng, [each for each in dict.fromkeys(given) if each not in known]))
        elif english:
            made = _exchanged(text, known, rng) if source == "exchanged" else _replaced(text, known, rng)
            by_source.append(list(islice(made, config.count)))
    rounds = max(map(len, by_source), default=0)
    alternating = [each[index] for index in range(rounds) for each in by_source if index < len(each)]
    return list(dict.fromkeys(alternating))[: config.count]


def _replaced(text: str, truths: Sequence[str], rng: np.random.Generator) -> Iterator[str]:
    """Yields copies of a text in which one word is replaced by a random word that contradicts it."""
    words = text.split(" ")
    for index in shuffled(rng, _replaceable(words)):
        for other in shuffled(rng, _CONTRADICTING[words[index]]):
            if not _may_be_true(words, index, other, truths):
                yield _with_words(words, {index: other})
                break


def _exchanged(text: str, truths: Sequence[str], rng: np.random.Generator) -> Iterator[str]:
    """Yields copies of a text in which a word is replaced by one that contradicts it and occurs in another text about the image:
    "a red star" becomes "a blue star" if there is a blue heart. If the other word is in the text as well, the two swap places:
    "a red star and a blue heart" becomes "a blue star and a red heart"."""
    words = text.split(" ")
    present = {word for truth in truths for word in truth.split(" ") if word in _CONTRADICTING}
    positions = _replaceable(words)
    pairs = [(index, other) for index in positions for other in _CONTRADICTING[words[index]] if other in present]
    for index, other in shuffled(rng, pairs):
        positions_of_other = [position for position in positions if words[position] == other]
        changed = {index: other} | ({positions_of_other[0]: words[index]} if positions_of_other else {})
        if not all(_may_be_true(words, position, word, truths) for position, word in changed.items()):
            yield _with_words(words, changed)


def _replaceable(words: Sequence[str]) -> list[int]:
    """Returns the positions of the words that can be replaced."""
    spans = [
        (start, start + len(span)) for span in _NOT_COLOURS for start in range(len(words)) if _at(words, start, span)
    ]
    found = []
    for index, word in enumerate(words):
        before, after = words[index - 1] if index else "", words[index + 1] if index + 1 < len(words) else ""
        if word not in _CONTRADICTING or any(start <= index < end for start, end in spans):
            continue
        if word in _SIDES and not (before in _BEFORE_A_SIDE or after in _AFTER_A_SIDE):
            continue
        if word == "orange" and before not in ("is", "are") and (not after or _NOT_NOUNS.fullmatch(after)):
            continue
        found.append(index)
    return found


def _at(words: Sequence[str], start: int, span: Sequence[str]) -> bool:
    return list(words[start : start + len(span)]) == list(span)


def _may_be_true(words: Sequence[str], index: int, other: str, truths: Sequence[str]) -> bool:
    """Returns True if a text about the image uses the new word to describe the same noun: "a red star" may not become
    "a blue star" if the image has "a small blue star" or "a star that is blue"."""
    following = [word for word in words[index + 1 : index + NEAR] if word not in _CONTRADICTING]
    name = next((word for word in following if len(word) > 2 and word not in _CONNECTING), None)
    return name is not None and any(_says(truth.split(" "), other, name) for truth in truths)


def _says(truth: Sequence[str], attribute: str, name: str) -> bool:
    for index, word in enumerate(truth):
        if word == attribute:
            is_predicate = index and truth[index - 1] in ("is", "are")
            near = truth[max(0, index - NEAR) : index] if is_predicate else truth[index + 1 : index + NEAR]
            if name in near:
                return True
    return False


def _with_words(words: Sequence[str], changed: dict[int, str]) -> str:
    """Returns the text with different words at some positions, and adapts "a" or "an" before them."""
    new = [changed.get(index, word) for index, word in enumerate(words)]
    for index in changed:
        if index and new[index - 1] in ("a", "an"):
            new[index - 1] = "an" if new[index][0] in "aeiou" else "a"
    return " ".join(new)
