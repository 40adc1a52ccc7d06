"""Generates questions about a scene, each with exactly one correct answer.

The answers are balanced as far as possible, so that they are hard to guess without the image. Each scene has one question about
existence with the answer yes and one with the answer no. For questions about numbers, the answer is drawn first, and then the
objects to count.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from demo.scenes.compose import QUESTION_PURPOSE, Scene, SceneObject, one_of
from demo.scenes.describe import (
    Attributes,
    Looks,
    arguably_true,
    attribute_sets,
    clearly_true,
    first_of_each,
    looks_of,
    named_by,
    reference_to,
)
from demo.scenes.vocabulary import COLOURS, PLAIN, RELATIONS, SHAPES, SIZES, TEXTURES
from utils.sequences import shuffled

MAX_PER_KIND = 2

_WITHOUT_COLOUR = attribute_sets("", "shape", "size", "texture", "size shape", "texture shape", "size texture")
"""Sets of attributes that name an object in questions about its colour."""

_WITHOUT_SHAPE = attribute_sets("colour", "size colour", "texture colour", "size", "texture", "size texture")
"""Sets of attributes that name an object in questions about its shape."""

_COUNTED: tuple[Looks, ...] = (
    Looks(),
    *(Looks(colour=word) for word in COLOURS),
    *(Looks(size=word) for word in SIZES),
    *(Looks(texture=word) for word in TEXTURES if word != PLAIN),
)
"""Descriptions of objects to count. They never mention the shape, so that only one plural is needed."""


class Question(NamedTuple):
    """A question, its answer, and its ``answer_type`` in VQA v2."""

    text: str
    answer: str
    answer_type: str


def ask_about(scene: Scene) -> tuple[Question, ...]:
    """Returns up to :data:`MAX_PER_KIND` different questions of each kind. They depend only on the scene."""
    rng = scene.rng(QUESTION_PURPOSE)
    kinds = (_colours, _counts, _relations, _existences, _shapes)
    return tuple(itertools.chain.from_iterable(kind(scene, rng) for kind in kinds))


def _colours(scene: Scene, rng: np.random.Generator) -> Iterator[Question]:
    for name, obj in _named_objects(scene, rng, _WITHOUT_COLOUR):
        yield Question(f"what colour is the {name}?", obj.colour, "other")


def _shapes(scene: Scene, rng: np.random.Generator) -> Iterator[Question]:
    """Asks for shapes directly, since the other questions teach the model to recognise shapes only slowly."""
    for name, obj in _named_objects(scene, rng, _WITHOUT_SHAPE):
        yield Question(f"what is the {name}?", obj.shape, "other")


def _named_objects(
    scene: Scene, rng: np.random.Generator, sets: tuple[Attributes, ...]
) -> Iterator[tuple[str, SceneObject]]:
    """Yields up to :data:`MAX_PER_KIND` objects, each with a name that fits no other object. ``sets`` are the sets of attributes
    that a name may mention."""
    named = 0
    for index in rng.permutation(len(scene.objects)):
        clear = [mention for mention in named_by(scene, int(index), sets) if mention.is_clear()]
        if clear and named < MAX_PER_KIND:
            named += 1
            yield one_of(rng, clear).name(), scene.objects[index]


def _counts(scene: Scene, rng: np.random.Generator) -> Iterator[Question]:
    by_number: dict[int, list[Looks]] = {}
    for looks in _COUNTED:
        by_number.setdefault(_number(scene, looks), []).append(looks)
    for number in shuffled(rng, list(by_number))[:MAX_PER_KIND]:
        yield Question(f"how many {one_of(rng, by_number[number]).name()}s are there?", str(number), "number")


def _relations(scene: Scene, rng: np.random.Generator) -> Iterator[Question]:
    """Asks about a relation only if it is arguably true for exactly one object, and clearly true for this object."""
    clear: list[tuple[int, str, int]] = []
    for index, reference in enumerate(scene.objects):
        for relation in RELATIONS:
            there = [other for other, obj in enumerate(scene.objects) if arguably_true(relation, obj, reference)]
            if len(there) == 1 and clearly_true(scene, relation, scene.objects[there[0]], reference):
                clear.append((index, relation, there[0]))
    for index, relation, other in first_of_each(shuffled(rng, clear), lambda triple: triple[2], MAX_PER_KIND):
        reference_name = reference_to(scene, index, rng).name()
        yield Question(f"what is {relation} the {reference_name}?", scene.objects[other].shape, "other")


def _existences(scene: Scene, rng: np.random.Generator) -> Iterator[Question]:
    """Asks about existence by colour and shape, or by one of them.

    Both questions of a scene name the same attributes, drawn uniformly, so that no wording is more likely to be true than
    another. Half of the absent objects have a colour and a shape that are both in the scene, but not in the same object.
    """
    (names,) = attribute_sets(one_of(rng, ["colour shape", "colour shape", "colour", "shape"]))
    present = [looks_of(obj, names) for obj in scene.objects]
    colours = COLOURS if "colour" in names else (None,)
    shapes = SHAPES if "shape" in names else (None,)
    absent = [Looks(colour=colour, shape=shape) for colour in colours for shape in shapes]
    absent = [looks for looks in absent if looks not in present]
    words = {word for obj in scene.objects for word in (obj.colour, obj.shape)}
    near = [looks for looks in absent if {looks.colour, looks.shape} <= words]
    lacking = near if near and rng.integers(2) else absent
    yes = Question(f"is there {one_of(rng, present).indefinite()}?", "yes", "yes/no")
    no = Question(f"is there {one_of(rng, lacking).indefinite()}?", "no", "yes/no")
    yield from (yes, no) if rng.integers(2) else (no, yes)


def _number(scene: Scene, looks: Looks) -> int:
    """Returns the number of objects with the given looks."""
    named = [looks_of(obj) for obj in scene.objects]
    return sum(all(wanted in (None, word) for wanted, word in zip(looks, whole, strict=True)) for whole in named)
