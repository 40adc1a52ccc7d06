"""Decides what is asked about a scene, each time with its one true answer; how it is worded is another matter (``wording.py``).

The answers are balanced as far as the scenes allow, so that little can be guessed without the picture: of existence a scene
is asked once where the answer is yes and once where it is no, and numbers are drawn before the things that are counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np

from demo.scenes.compose import QUESTION_STREAM, Scene, stream
from demo.scenes.describe import (
    Attributes,
    Looks,
    Mention,
    clearly,
    fitting,
    looks_of,
    named_by,
    reference_to,
    vaguely,
)
from demo.scenes.vocabulary import COLOURS, PLAIN, RELATIONS, SHAPES, SIZES, TEXTURES

Kind = Literal["colour", "count", "relation", "existence"]

ANSWER_TYPES: dict[Kind, str] = {"colour": "other", "count": "number", "relation": "other", "existence": "yes/no"}
"""VQA v2's ``answer_type`` of each kind."""

EACH = 2
"""Questions of each kind about a scene, at most."""


class Question(NamedTuple):
    """What is asked, and the answer.

    "colour": that of the one thing of such ``looks``. "count": how many things look so. "relation": the shape of the one thing
    that lies in ``relation`` to the thing of such ``looks``. "existence": whether there is such a thing.
    """

    kind: Kind
    looks: Looks
    answer: str
    relation: str | None = None


def ask_about(scene: Scene) -> tuple[Question, ...]:
    """The questions about ``scene``, up to :data:`EACH` of a kind and none twice: a pure function of the scene."""
    rng = stream(scene.seed, scene.split, scene.index, QUESTION_STREAM)
    return (*_colours(scene, rng), *_counts(scene, rng), *_relations(scene, rng), *_existences(scene, rng))


_ASKED: tuple[Attributes, ...] = tuple(
    frozenset(names.split())
    for names in ("", "shape", "size", "texture", "size shape", "texture shape", "size texture")
)
"""By which attributes a thing is named whose colour is asked for."""

_COUNTED: tuple[Looks, ...] = (
    Looks(),
    *(Looks(colour=word) for word in COLOURS),
    *(Looks(size=word) for word in SIZES),
    *(Looks(texture=word) for word in TEXTURES if word != PLAIN),
)
"""Never by shape: one plural is enough."""


def _colours(scene: Scene, rng: np.random.Generator) -> Iterator[Question]:
    asked = 0
    for place in rng.permutation(len(scene.objects)):
        thing = scene.objects[place]
        clear = [names for names in named_by(thing, _ASKED) if fitting(scene, Mention(int(place), names)) == [place]]
        if clear and asked < EACH:
            asked += 1
            yield Question("colour", looks_of(thing, clear[rng.integers(len(clear))]), thing.colour)


def _counts(scene: Scene, rng: np.random.Generator) -> Iterator[Question]:
    by_number: dict[int, list[Looks]] = {}
    for looks in _COUNTED:
        by_number.setdefault(_number(scene, looks), []).append(looks)
    numbers = list(by_number)
    for pick in rng.permutation(len(numbers))[:EACH]:
        alike = by_number[numbers[pick]]
        yield Question("count", alike[rng.integers(len(alike))], str(numbers[pick]))


def _relations(scene: Scene, rng: np.random.Generator) -> Iterator[Question]:
    """Only where one object lies to the reference so that someone could say it, and that one beyond doubt."""
    found: list[tuple[int, str, int]] = []
    for place, reference in enumerate(scene.objects):
        for relation in RELATIONS:
            there = [other for other, thing in enumerate(scene.objects) if vaguely(relation, thing, reference)]
            if len(there) == 1 and clearly(scene, relation, scene.objects[there[0]], reference):
                found.append((place, relation, there[0]))
    asked: dict[int, Question] = {}
    for pick in rng.permutation(len(found)):
        place, relation, other = found[pick]
        if other not in asked and len(asked) < EACH:
            looks = looks_of(scene.objects[place], reference_to(scene, place, rng).attributes)
            asked[other] = Question("relation", looks, scene.objects[other].shape, relation)
    yield from asked.values()


def _existences(scene: Scene, rng: np.random.Generator) -> Iterator[Question]:
    """By colour and shape, or by one of the two. Both questions of a scene name the same attributes, uniformly drawn: no
    wording is likelier true than another. Of the things that are not there, every other one has a colour and a shape that
    are, but not together."""
    names = [("colour", "shape"), ("colour", "shape"), ("colour",), ("shape",)][rng.integers(4)]
    there = [_only(looks_of(thing), names) for thing in scene.objects]
    colours = COLOURS if "colour" in names else (None,)
    shapes = SHAPES if "shape" in names else (None,)
    absent = [Looks(colour=colour, shape=shape) for colour in colours for shape in shapes]
    absent = [looks for looks in absent if looks not in there]
    near = [
        looks
        for looks in absent
        if {looks.colour, looks.shape} <= {word for thing in there for word in (thing.colour, thing.shape)}
    ]
    lacking = near if near and rng.integers(2) else absent
    pair = [
        Question("existence", there[rng.integers(len(there))], "yes"),
        Question("existence", lacking[rng.integers(len(lacking))], "no"),
    ]
    yield from pair if rng.integers(2) else pair[::-1]


def _only(looks: Looks, names: Sequence[str]) -> Looks:
    return Looks(**{name: getattr(looks, name) for name in names})


def _number(scene: Scene, looks: Looks) -> int:
    seen = [looks_of(thing) for thing in scene.objects]
    return sum(all(said in (None, has) for said, has in zip(looks, thing, strict=True)) for thing in seen)
