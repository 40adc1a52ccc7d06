"""Decides which concepts are held out, for all sources together.

A *concept* is a name without the details that distinguish variants of the same object: case, articles, singular or plural, and,
for emoji, gender, skin tone and direction. The split cannot be decided separately for each source: "A red kangaroo." in one
source would teach the "kangaroo" that another source holds out. All names are therefore split together, so that three conditions
hold. :func:`leaks` checks the second condition.

1. A concept is in one split only, in all sources.
2. A concept of val or test never occurs in a training text, neither as the complete text nor as part of it ("kangaroo" in "a red
   kangaroo").
3. A concept that occurs in more than :data:`MAX_CONTAINING` other concepts ("face", "hand") is in training, because holding it
   out would exclude all these concepts from training.

Parts of a held-out concept may be in training: "kangaroo" if "red kangaroo" is held out. Synonyms are not detected.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from dataset.prepare.folders import split_by_hash

MAX_CONTAINING = 3
"""A concept that occurs in more than this number of other concepts is never held out."""


def word_set(words: str) -> frozenset[str]:
    """Returns the set of words in a text."""
    return frozenset(words.split())


PERSON = "person"
PEOPLE = word_set("person people man men woman women boy boys girl girls male female adult adults child children")
VARIANTS = re.compile(r"\b((medium-)?(light|dark)|medium) skin tone\b|\bfacing right\b")
"""Phrases after the colon in the name of an emoji that distinguish variants. Other phrases ("flag: Ireland") are kept."""

ALIASES = {"merman": "merperson", "mermaid": "merperson", "princess": "prince", "mrs": "mx", "santa": "mx"}
DROPPED = word_set("a an the of and")

Concept = tuple[str, ...]
"""The words of a concept."""


def concept_of(name: str) -> Concept:
    """Returns the concept of a name, or () if the name has no words."""
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
    """Yields all runs of consecutive words in a concept, including the complete concept."""
    for start in range(len(concept)):
        for stop in range(start + 1, len(concept) + 1):
            yield concept[start:stop]


@dataclass(frozen=True)
class ConceptSplit:
    """The split of each concept of a collection. ``held_out`` contains the concepts of val and test, with their split."""

    held_out: Mapping[Concept, str]
    common: frozenset[Concept]
    """Concepts that would be held out, but occur in too many other concepts."""

    @staticmethod
    def of(concepts: Iterable[Concept]) -> ConceptSplit:
        """Splits a collection by the hash of each concept; common concepts are in training."""
        every = {concept for concept in concepts if concept}
        within: Counter[Concept] = Counter()
        for concept in every:
            within.update(part for part in set(parts_of(concept)) - {concept} if part in every)
        drawn = {concept: split_by_hash(" ".join(concept)) for concept in every}
        common = frozenset(name for name, split in drawn.items() if split != "train" and within[name] > MAX_CONTAINING)
        held_out = {name: split for name, split in drawn.items() if split != "train" and name not in common}
        return ConceptSplit(held_out, common)

    def split(self, concept: Concept) -> str:
        """Returns the split of a concept: "train", "val" or "test"."""
        return self.held_out.get(concept, "train")

    def may_train(self, text: str) -> bool:
        """Returns True if a text contains no held-out concept."""
        return not any(part in self.held_out for part in parts_of(concept_of(text)))


def leaks(training_texts: Iterable[str], held_out_names: Collection[str]) -> list[tuple[str, str]]:
    """Returns the held-out names that occur in training texts, each with the text. The list must be empty.

    Unlike :meth:`ConceptSplit.may_train`, this check searches for the words of each name in the words of each text.
    """
    wanted = {" ".join(concept_of(name)): name for name in held_out_names}
    found = []
    for text in training_texts:
        padded = f" {' '.join(concept_of(text))} "
        found += [(name, text) for words, name in wanted.items() if f" {words} " in padded]
    return found
