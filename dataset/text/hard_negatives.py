"""Hard negative texts: texts that resemble a caption, but differ from it in one fact, so that they are wrong about its image."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Literal, TypeVar

import numpy as np
from pydantic import Field

from utils.config import Config

T = TypeVar("T")

Source = Literal["given", "exchanged", "replaced"]

TRIES = 8
"""Maximum number of pairs of phrases whose attributes are exchanged for one text."""

_OPPOSITES = """
red / orange / yellow / green / cyan turquoise / blue / purple violet / pink / brown / black / white / gray grey
small little tiny / large big huge
striped / dotted spotted / checked checkered / plain
wooden / metal metallic / plastic / glass / leather / stone / paper
two / three / four / five / six / seven / eight / nine / ten
left / right
leftmost / rightmost
above over / below under underneath beneath
top upper / bottom lower
topmost / bottommost
inside / outside
front / back
open / closed
full / empty
young / old
long / short
wet / dry
with / without
"""
"""Kinds of words, one a line, of which a text that is true with one is usually wrong with another. Words between two slashes mean
about the same, and do not replace each other."""


def _by_word() -> dict[str, list[str]]:
    """Returns the words that may replace each word."""
    found: dict[str, list[str]] = {}
    for line in _OPPOSITES.strip().splitlines():
        meanings = [meaning.split() for meaning in line.split("/")]
        for own in meanings:
            others = [word for meaning in meanings if meaning is not own for word in meaning]
            found |= dict.fromkeys(own, others)
    return found


_REPLACEMENTS = _by_word()


class HardNegativesConfig(Config):
    """Texts that are wrong about an image though they resemble its caption. They join its contrastive and its matching loss."""

    count: int = Field(1, ge=1, le=16, description="maximum number of hard negatives for each text")
    sources: tuple[Source, ...] = Field(
        ("given", "exchanged", "replaced"),
        min_length=1,
        description="where they come from; one of the sources that have a text is drawn each time. given: hard_negatives of the "
        "record or element; exchanged: two phrases of the same image exchange their attributes; replaced: a word for a colour, "
        "size, material, number or place is replaced by another (English only)",
    )


def hard_negatives(
    config: HardNegativesConfig, text: str, given: Sequence[str], phrases: Sequence[str], rng: np.random.Generator
) -> list[str]:
    """Returns up to ``config.count`` different hard negatives of a text.

    Args:
        config: their number and sources.
        text: the cleaned text.
        given: cleaned texts that are known to be wrong.
        phrases: cleaned phrases about the boxes of the same image.
        rng: source of randomness.
    """
    made = {
        "given": lambda: _shuffled([each for each in dict.fromkeys(given) if each != text], rng),
        "exchanged": lambda: exchanged(text, phrases, rng),
        "replaced": lambda: replaced(text, rng),
    }
    by_source = [made[source]() for source in _shuffled(config.sources, rng)]
    in_turns = [each[turn] for turn in range(max(map(len, by_source))) for each in by_source if turn < len(each)]
    return list(dict.fromkeys(in_turns))[: config.count]


def exchanged(text: str, phrases: Sequence[str], rng: np.random.Generator) -> list[str]:
    """Returns copies of a text in which a phrase has the attributes of another phrase of the same image, and the reverse: "a red
    star and a blue heart" becomes "a blue star and a red heart".

    The attributes are all words of a phrase but the last. If the image has a phrase that the exchange would make, the copy might
    be true and is left out. At most :data:`TRIES` random pairs of phrases are tried.
    """
    known = list(dict.fromkeys(phrases))
    said = [phrase for phrase in known if _find(phrase, text)]
    pairs = [(first, second) for first in said for second in known if first != second]
    found = []
    for first, second in _shuffled(pairs, rng)[:TRIES]:
        (first_attributes, first_name), (second_attributes, second_name) = _parted(first), _parted(second)
        new_first, new_second = f"{second_attributes}{first_name}", f"{first_attributes}{second_name}"
        is_contained = _find(first, second) or _find(second, first)
        if is_contained or first_name == second_name or new_first in (first, *known):
            continue
        changed = {first: new_first, second: new_second}
        pattern = "|".join(rf"\b{re.escape(each)}\b" for each in changed)
        found.append(re.sub(pattern, partial(_instead, changed), text))
    return list(dict.fromkeys(found))


def replaced(text: str, rng: np.random.Generator) -> list[str]:
    """Returns copies of a text in which one word is replaced by a random word that contradicts it: a copy for each such word."""
    words = text.split(" ")
    replaceable = [index for index, word in enumerate(words) if word in _REPLACEMENTS]
    found = []
    for index in _shuffled(replaceable, rng):
        others = _REPLACEMENTS[words[index]]
        found.append(" ".join((*words[:index], others[rng.integers(len(others))], *words[index + 1 :])))
    return found


def _instead(changed: Mapping[str, str], match: re.Match[str]) -> str:
    return changed[match[0]]


def _parted(phrase: str) -> tuple[str, str]:
    """Splits a phrase into its attributes, with the space after them, and its last word."""
    start = phrase.rfind(" ") + 1
    return phrase[:start], phrase[start:]


def _find(phrase: str, text: str) -> bool:
    return re.search(rf"\b{re.escape(phrase)}\b", text) is not None


def _shuffled(items: Sequence[T], rng: np.random.Generator) -> list[T]:
    return [items[index] for index in rng.permutation(len(items))]
