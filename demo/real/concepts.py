"""Which concepts are held out, for all sources together.

A *concept* is a name without what variants of one thing differ in: case, articles, number, and, for emoji, gender, skin and
direction. A source's name alone cannot decide the split of its record: "A red kangaroo." of one source would teach the "kangaroo"
that another holds out. So the split is made of all names at once, by three rules, the second of which :func:`leaks` checks:

1. A concept is in one split only, whatever its source.
2. No concept of val or test occurs in a training text, as a whole or within it ("kangaroo" in "a red kangaroo").
3. A concept that more than :data:`MAX_WITHIN` others contain ("face", "hand") trains: to hold it out would cost all of them.

Parts of a held-out concept may train: "kangaroo" where "red kangaroo" is held out. Synonyms are not known.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from dataset.prepare.folders import split_by_hash

MAX_WITHIN = 3
"""A concept that lies within more concepts than that is never held out."""


def word_set(words: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(words.split())


PERSON = "person"
PEOPLE = word_set("person people man men woman women boy boys girl girls male female adult adults child children")
VARIANTS = re.compile(r"\b((medium-)?(light|dark)|medium) skin tone\b|\bfacing right\b")
"""Phrases after the colon of an emoji's name that tell variants apart; others there ("flag: Ireland") are kept."""

ALIASES = {"merman": "merperson", "mermaid": "merperson", "princess": "prince", "mrs": "mx", "santa": "mx"}
DROPPED = word_set("a an the of and")

Concept = tuple[str, ...]
"""The words of a concept."""


def concept_of(name: str) -> Concept:
    """The concept of a name; () where it has no word."""
    head, _, tail = name.casefold().partition(":")
    words = _words(head)
    after = _words(VARIANTS.sub(" ", tail))
    if not PEOPLE.issuperset(after):
        words += after
    plain = [PERSON if word in PEOPLE else ALIASES.get(word, _singular(word)) for word in words if word not in DROPPED]
    while len(plain) > 1 and plain[0] == PERSON:  # "woman mage", "mage"
        plain = plain[1:]
    return tuple(plain)


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", re.sub(r"[’']s\b", "", text))


def _singular(word: str) -> str:
    if len(word) <= 3 or word.endswith(("ss", "us", "is")):
        return word
    if word.endswith("ies"):
        return word[:-3] + "y"
    if word.endswith(("ches", "shes", "xes", "sses")):
        return word[:-2]
    return word.removesuffix("s")


def parts_of(concept: Concept) -> Iterator[Concept]:
    """Every run of words in a concept, itself included."""
    for start in range(len(concept)):
        for stop in range(start + 1, len(concept) + 1):
            yield concept[start:stop]


@dataclass(frozen=True)
class ConceptSplit:
    """The split of every concept of a collection; ``held_out`` has those of val and test, with their split."""

    held_out: Mapping[Concept, str]
    common: frozenset[Concept]
    """Concepts that would be held out, but lie within too many others."""

    @staticmethod
    def of(concepts: Iterable[Concept]) -> ConceptSplit:
        """The split of a collection: a concept's hash decides it, unless the concept is common."""
        every = {concept for concept in concepts if concept}
        within: Counter[Concept] = Counter()
        for concept in every:
            within.update(part for part in set(parts_of(concept)) - {concept} if part in every)
        drawn = {concept: split_by_hash(" ".join(concept)) for concept in every}
        common = frozenset(name for name, split in drawn.items() if split != "train" and within[name] > MAX_WITHIN)
        held_out = {name: split for name, split in drawn.items() if split != "train" and name not in common}
        return ConceptSplit(held_out, common)

    def split(self, concept: Concept) -> str:
        """The split of a concept: "train", "val" or "test"."""
        return self.held_out.get(concept, "train")

    def may_train(self, text: str) -> bool:
        """Whether a text has no held-out concept in it."""
        return not any(part in self.held_out for part in parts_of(concept_of(text)))


def leaks(training_texts: Iterable[str], held_out_names: Collection[str]) -> list[tuple[str, str]]:
    """Held-out names that occur in training texts, with such a text: none, if the split holds.

    It looks the other way round than :meth:`ConceptSplit.may_train`: for the words of each name in the words of each text.
    """
    wanted = {" ".join(concept_of(name)): name for name in held_out_names}
    found = []
    for text in training_texts:
        padded = f" {' '.join(concept_of(text))} "
        found += [(name, text) for words, name in wanted.items() if f" {words} " in padded]
    return found
