"""Minimal pairs: two scenes that differ in a single respect, each with a text that is true only of that scene.

A model that ignores the image therefore cannot do better than chance.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np

from demo.scenes.compose import GAP, PAIRS_PURPOSE, Scene, SceneObject, are_apart, one_of, place, split_of
from demo.scenes.describe import attribute_sets, clearly_true, looks_of
from demo.scenes.sets import NUMBERS
from demo.scenes.vocabulary import RELATIONS, SHAPES, TEXTURES
from utils.sequences import shuffled

COUNTS = ("one shape", *(f"{number} shapes" for number in NUMBERS.values()))
"""The text for each number of objects, from 1."""

ADD_PROBABILITY = {1: 1.0, 2: 0.6, 3: 0.5, 4: 0.25, 5: 0.0}
"""Probability that an object is added rather than removed, by the number of objects."""
FIVE_OBJECTS_FRACTION = 1 / 3
"""Fraction of the scenes with five objects that get a pair about the number of objects. With this fraction,
:data:`ADD_PROBABILITY` and :data:`~demo.scenes.vocabulary.OBJECT_COUNTS`, each text about a number is right as often as it is
wrong."""

OPPOSITES = {
    name: next(other for other, place in RELATIONS.items() if place == (axis, -sign))
    for name, (axis, sign) in RELATIONS.items()
}

(_NAMED,) = attribute_sets("texture colour shape")


class MinimalPair(NamedTuple):
    """A scene's ``text``, and an ``other`` scene that differs in a single respect, with the text that is true of it."""

    kind: str
    text: str
    other: Scene
    other_text: str


@functools.lru_cache(maxsize=1)
def minimal_pairs(scene: Scene) -> tuple[MinimalPair, ...]:
    """Returns a pair of each kind in :data:`KINDS` that is possible for the scene. The pairs depend only on the scene."""
    rng = scene.rng(PAIRS_PURPOSE)
    found = ((kind, next(filter(partial(_fits, scene), make(scene, rng)), None)) for kind, make in KINDS.items())
    return tuple(MinimalPair(kind, *pair) for kind, pair in found if pair is not None)


def _fits(scene: Scene, candidate: tuple[str, Scene, str]) -> bool:
    """Returns True if the other scene could not have been a training scene, unless the pair is for training."""
    _, other, _ = candidate
    return scene.split == "train" or split_of([(obj.shape, obj.colour) for obj in other.objects]) != "train"


Candidates = Iterator[tuple[str, Scene, str]]
"""The possible pairs in random order: the text, the other scene, and its text."""


def _colours(scene: Scene, rng: np.random.Generator) -> Candidates:
    """Two objects exchange their colours: "a red star and a blue heart", "a blue star and a red heart"."""
    known = {(obj.colour, obj.shape) for obj in scene.objects}
    for first, second in shuffled(rng, list(itertools.permutations(range(len(scene.objects)), 2))):
        one, two = scene.objects[first], scene.objects[second]
        if {(two.colour, one.shape), (one.colour, two.shape)} & known:
            continue  # same colour or shape, or a text would be partly true of both scenes
        painted_one = replace(one, colour=two.colour, rgb=two.rgb, accent=two.accent)
        painted_two = replace(two, colour=one.colour, rgb=one.rgb, accent=one.accent)
        other = _with(scene, {first: painted_one, second: painted_two})
        yield f"{_name(one)} and {_name(two)}", other, f"{_name(painted_one)} and {_name(painted_two)}"


def _relation(scene: Scene, rng: np.random.Generator) -> Candidates:
    """Two objects swap places: "a red star left of a blue heart", "a red star right of a blue heart"."""
    for first, second in shuffled(rng, list(itertools.permutations(range(len(scene.objects)), 2))):
        one, two = scene.objects[first], scene.objects[second]
        moved = {first: _moved(one, two.centre), second: _moved(two, one.centre)}
        other = _with(scene, moved)
        if not _is_laid_out(other):
            continue
        for relation in shuffled(rng, list(RELATIONS)):
            opposite = OPPOSITES[relation]
            if clearly_true(scene, relation, one, two) and clearly_true(other, opposite, moved[first], moved[second]):
                yield f"{_name(one)} {relation} {_name(two)}", other, f"{_name(one)} {opposite} {_name(two)}"


def _count(scene: Scene, rng: np.random.Generator) -> Candidates:
    """An object is removed or added: "three shapes", "two shapes"."""
    count = len(scene.objects)
    if count == len(COUNTS) and rng.random() >= FIVE_OBJECTS_FRACTION:
        return
    for other in (_with_one_more if rng.random() < ADD_PROBABILITY[count] else _with_one_less)(scene, rng):
        yield COUNTS[count - 1], other, COUNTS[len(other.objects) - 1]


def _with_one_less(scene: Scene, rng: np.random.Generator) -> Iterator[Scene]:
    for gone in shuffled(rng, range(len(scene.objects))):
        yield replace(scene, objects=scene.objects[:gone] + scene.objects[gone + 1 :])


def _with_one_more(scene: Scene, rng: np.random.Generator) -> Iterator[Scene]:
    """Yields the scene with one more small object, in the colour of another object, which contrasts with the background."""
    known = {(obj.shape, obj.colour) for obj in scene.objects}
    looks = [(shape, obj.colour) for obj in scene.objects for shape in SHAPES if (shape, obj.colour) not in known]
    for shape, colour in shuffled(rng, looks):
        added = place(rng, shape, colour, "small", scene.width, scene.height, [obj.box for obj in scene.objects])
        if added is not None:
            yield replace(scene, objects=(*scene.objects, added))


def _attribute(scene: Scene, rng: np.random.Generator) -> Candidates:
    """An object gains, loses or changes its texture: "a red star", "a striped red star". Texts of pairs always name a texture
    that is not plain. All textures are equally frequent in right and wrong texts."""
    index = int(rng.integers(len(scene.objects)))
    obj = scene.objects[index]
    texture = one_of(rng, [each for each in TEXTURES if each != obj.texture])
    changed = replace(obj, texture=texture, form=obj.form._replace(texture=texture))
    yield _name(obj), _with(scene, {index: changed}), _name(changed)


KINDS: dict[str, Callable[[Scene, np.random.Generator], Candidates]] = {
    "colours": _colours,
    "relation": _relation,
    "count": _count,
    "attribute": _attribute,
}


def _name(obj: SceneObject) -> str:
    return looks_of(obj, _NAMED).indefinite()


def _with(scene: Scene, changed: dict[int, SceneObject]) -> Scene:
    return replace(scene, objects=tuple(changed.get(index, obj) for index, obj in enumerate(scene.objects)))


def _moved(obj: SceneObject, centre: tuple[float, float]) -> SceneObject:
    """Returns the object at a different position."""
    _, _, w, h = obj.box
    return replace(obj, box=(round(centre[0] - w / 2), round(centre[1] - h / 2), w, h))


def _is_laid_out(scene: Scene) -> bool:
    """Returns True if all objects are inside the image and apart from each other."""
    boxes = [obj.box for obj in scene.objects]
    inside = all(
        min(x, y) >= GAP and x + w <= scene.width - GAP and y + h <= scene.height - GAP for x, y, w, h in boxes
    )
    return inside and all(are_apart(one, two, GAP) for one, two in itertools.combinations(boxes, 2))
