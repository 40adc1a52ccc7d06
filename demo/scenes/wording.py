"""English words for phrases, statements and questions, and the captions of a scene in all languages."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from demo.scenes.compose import Scene
from demo.scenes.describe import (
    EVERYTHING,
    UNTEXTURED,
    Looks,
    Mention,
    RelationPhrase,
    attribute_sets,
    describe_scene,
    looks_of,
)
from demo.scenes.languages import LANGUAGES, enumeration, listing, sentence
from demo.scenes.questions import Question
from demo.scenes.referring import PlacePhrase
from demo.scenes.statements import Statement
from demo.scenes.vocabulary import SIDES

MAX_PIECES = 28
"""Words and commas of a caption, at most: 30 tokens with [CLS] and [SEP]."""

_DETAIL = (EVERYTHING, *attribute_sets("colour shape texture"), UNTEXTURED, *attribute_sets("colour shape"))
"""Attributes that a caption names of every object, most detail first."""

_STATEMENTS = {
    "side": "the {side} picture has {one}",
    "both": "both pictures have {one}",
    "either": "at least one picture has {one}",
    "one": "only one picture has {one}",
    "more": "the {side} picture has more {name}s than the {opposite} picture",
}
_QUESTIONS = {
    "colour": "what colour is the {name}?",
    "count": "how many {name}s are there?",
    "relation": "what is {relation} the {name}?",
    "existence": "is there {one}?",
}


def name_of(looks: Looks) -> str:
    """Words without an article: "small red shape"."""
    *adjectives, noun = looks
    return " ".join([word for word in adjectives if word is not None] + [noun or "shape"])


def indefinite(looks: Looks) -> str:
    """ "a striped red star", "an orange shape"."""
    name = name_of(looks)
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def definite(scene: Scene, mention: Mention) -> str:
    """ "the striped red star"."""
    return f"the {name_of(mention.looks(scene))}"


def relation_phrase(scene: Scene, phrase: RelationPhrase) -> str:
    """Refers to the subject: "the small circle left of the blue square"."""
    return f"{definite(scene, phrase.subject)} {phrase.relation} {definite(scene, phrase.reference)}"


def place_phrase(scene: Scene, phrase: PlacePhrase) -> str:
    """Refers to the subject: "the leftmost red shape"."""
    return f"the {phrase.place} {name_of(phrase.subject.looks(scene))}"


def statement_text(statement: Statement) -> str:
    """A statement on two images: "the left picture has a striped red star", "both pictures have a star"."""
    return _STATEMENTS[statement.kind].format(
        name=name_of(statement.looks),
        one=indefinite(statement.looks),
        side=statement.side,
        opposite=SIDES[0] if statement.side == SIDES[1] else SIDES[1],
    )


def question_text(question: Question) -> str:
    """A question about one image: "what colour is the large star?", "what is left of the blue square?"."""
    looks = question.looks
    return _QUESTIONS[question.kind].format(name=name_of(looks), one=indefinite(looks), relation=question.relation)


def captions_by_language(scene: Scene) -> dict[str, list[str]]:
    """Two captions in each language: a list of the scene's objects, and a sentence of how they lie.

    Each names shape and colour of every object, and as much of texture and size as :data:`MAX_PIECES` leaves room for in
    English; the other languages say the same.
    """
    description = describe_scene(scene)
    links = description.links
    listed = _most_detailed(scene, description.listed, lambda looks: listing("en", looks))
    chain = _most_detailed(scene, description.chain, lambda looks: sentence("en", looks, links))
    return {language: [listing(language, listed), sentence(language, chain, links)] for language in LANGUAGES}


def reference_captions(scene: Scene) -> list[str]:
    """Captions that several people might write: the objects from left to right, in more and in less detail.

    Those that fit into :data:`MAX_PIECES`; the one with the least detail always does.
    """
    objects = sorted(scene.objects, key=lambda thing: thing.centre)
    texts = [enumeration("en", [indefinite(looks_of(thing, detail)) for thing in objects]) for detail in _DETAIL]
    return list(dict.fromkeys(text for text in texts if pieces(text) <= MAX_PIECES))


def pieces(text: str) -> int:
    """Number of words and punctuation marks."""
    return len(re.findall(r"\w+|[^\w\s]", text))


def _most_detailed(scene: Scene, order: Sequence[int], say: Callable[[list[Looks]], str]) -> list[Looks]:
    """Looks of the objects in as much detail as fits into a caption, or else in the least."""
    by_detail = [[looks_of(scene.objects[place], detail) for place in order] for detail in _DETAIL]
    return next((looks for looks in by_detail if pieces(say(looks)) <= MAX_PIECES), by_detail[-1])
