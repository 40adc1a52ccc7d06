"""English words for what ``describe.py`` decided to say. Captions in other languages: ``languages.py``."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from demo.scenes.compose import Scene
from demo.scenes.describe import (
    EVERYTHING,
    PAIR,
    UNTEXTURED,
    Attributes,
    Description,
    Looks,
    Mention,
    RelationPhrase,
    looks_of,
)
from demo.scenes.questions import Question
from demo.scenes.referring import PlacePhrase
from demo.scenes.statements import Statement
from demo.scenes.vocabulary import SIDES

MAX_PIECES = 28
"""Words and commas of a caption, at most: 30 tokens with [CLS] and [SEP]."""

_DETAIL: tuple[Attributes, ...] = (EVERYTHING, PAIR | {"texture"}, UNTEXTURED, PAIR)


def noun_phrase(scene: Scene, mention: Mention, *, definite: bool = False) -> str:
    """An object by the mentioned attributes: "a striped red star", "the small shape". A plain texture is not spoken of."""
    said = _named(looks_of(scene.objects[mention.index], mention.attributes))
    return f"the {said}" if definite else _indefinite(said)


def relation_phrase(scene: Scene, phrase: RelationPhrase) -> str:
    """Refers to the subject: "the small circle left of the blue square"."""
    subject = noun_phrase(scene, phrase.subject, definite=True)
    return f"{subject} {phrase.relation} {noun_phrase(scene, phrase.reference, definite=True)}"


def place_phrase(scene: Scene, phrase: PlacePhrase) -> str:
    """Refers to the subject: "the leftmost red shape"."""
    return f"the {phrase.place} {_named(looks_of(scene.objects[phrase.subject.index], phrase.subject.attributes))}"


def statement_text(statement: Statement) -> str:
    """Of a pair of pictures: "the left picture has a striped red star", "both pictures have a star"."""
    named = _named(statement.looks)
    match statement.kind:
        case "side":
            return f"the {statement.side} picture has {_indefinite(named)}"
        case "both":
            return f"both pictures have {_indefinite(named)}"
        case "either":
            return f"at least one picture has {_indefinite(named)}"
        case "one":
            return f"only one picture has {_indefinite(named)}"
        case "more":
            more, fewer = SIDES if statement.side == SIDES[0] else SIDES[::-1]
            return f"the {more} picture has more {named}s than the {fewer} picture"


def question_text(question: Question) -> str:
    """Of one picture: "what colour is the large star?", "what is left of the blue square?"."""
    named = _named(question.looks)
    match question.kind:
        case "colour":
            return f"what colour is the {named}?"
        case "count":
            return f"how many {named}s are there?"
        case "relation":
            return f"what is {question.relation} the {named}?"
        case "existence":
            return f"is there {_indefinite(named)}?"


def captions(scene: Scene, description: Description) -> list[str]:
    """Two texts for the whole picture: a list of its objects, and a sentence of how they lie.

    Each names shape and colour of every object, and as much of texture and size as :data:`MAX_PIECES` leaves room for.
    """
    of_list, of_sentence = details(scene, description)
    return [_listing(scene, description, of_list), _sentence(scene, description, of_sentence)]


def details(scene: Scene, description: Description) -> tuple[Attributes, Attributes]:
    """What is said of each object in the list and in the sentence: as much as fits, and the least where nothing does."""

    def most(say: Callable[[Scene, Description, Attributes], str]) -> Attributes:
        fitting = (detail for detail in _DETAIL if pieces(say(scene, description, detail)) <= MAX_PIECES)
        return next(fitting, _DETAIL[-1])

    return most(_listing), most(_sentence)


def reference_captions(scene: Scene) -> list[str]:
    """What several people might write under the picture: its objects from left to right, in more and in less detail.

    Those that fit into :data:`MAX_PIECES`; the one with the least detail always does.
    """
    order = sorted(range(len(scene.objects)), key=lambda place: scene.objects[place].centre)
    written = [_enumeration([noun_phrase(scene, Mention(place, detail)) for place in order]) for detail in _DETAIL]
    return list(dict.fromkeys(text for text in written if pieces(text) <= MAX_PIECES))


def pieces(text: str) -> int:
    """Words and punctuation marks of a text."""
    return len(re.findall(r"\w+|[^\w\s]", text))


def _listing(scene: Scene, description: Description, detail: Attributes) -> str:
    return "a scene with " + _enumeration([noun_phrase(scene, Mention(place, detail)) for place in description.listed])


def _enumeration(named: Sequence[str]) -> str:
    return named[0] if len(named) == 1 else f"{', '.join(named[:-1])} and {named[-1]}"


def _sentence(scene: Scene, description: Description, detail: Attributes) -> str:
    said = [noun_phrase(scene, Mention(description.chain[0], detail))]
    for link, place in zip(description.links, description.chain[1:], strict=True):
        said.append(link or "and")
        said.append(noun_phrase(scene, Mention(place, detail)))
    return " ".join(said) if len(description.chain) > 1 else f"only {said[0]}"


def _named(looks: Looks) -> str:
    """Words without an article: "small red shape"."""
    *adjectives, noun = looks
    return " ".join([word for word in adjectives if word is not None] + [noun or "shape"])


def _indefinite(said: str) -> str:
    return f"{'an' if said[0] in 'aeiou' else 'a'} {said}"
