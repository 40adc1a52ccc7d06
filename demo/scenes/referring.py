"""Decides by which phrases an object can be singled out; ``wording.py`` puts it into words.

Every phrase fits exactly one object of its scene, beyond doubt. Most of them need a look at the other objects as well.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from demo.scenes.compose import REFERRING_STREAM, Scene, SceneObject, shuffled
from demo.scenes.describe import Attributes, Mention, attribute_sets, first_of_each, named_by
from demo.scenes.vocabulary import PLACES

PLACE_MARGIN = 0.1
"""How far the leftmost object of several lies to the left of the next one, at least, by its centre and by its left edge: a
fraction of the image's shorter side. The same for the other places."""

MAX_ATTRIBUTES = 2
MAX_PLACES = 2

_SUBSETS: tuple[Attributes, ...] = tuple(
    frozenset(names)
    for number in (1, 2, 3)
    for names in itertools.combinations(("size", "texture", "colour", "shape"), number)
)
"""Smaller sets first. Size, colour, shape and texture together are never needed: colour and shape alone fit one object."""

_PLACED = attribute_sets("", "shape", "colour", "size", "texture")


@dataclass(frozen=True)
class PlacePhrase:
    """Of all objects that the subject's attributes fit, two at least, the one at ``place`` (of ``vocabulary.PLACES``)."""

    subject: Mention
    place: str


def refer_in_scene(scene: Scene) -> tuple[tuple[Mention, ...], tuple[PlacePhrase, ...]]:
    """Phrases that single out one object each, by attributes and by place: a function of the scene alone.

    A scene of one object has none: nothing needs telling apart.
    """
    if len(scene.objects) == 1:
        return (), ()
    rng = scene.rng(REFERRING_STREAM)
    return _attribute_mentions(scene, rng), _place_phrases(scene, rng)


def _attribute_mentions(scene: Scene, rng: np.random.Generator) -> tuple[Mention, ...]:
    """With any attribute left out they would fit more objects. The ones that need most attributes come first."""
    minimal: list[Mention] = []
    for place in range(len(scene.objects)):
        smaller: list[Attributes] = []
        for mention in named_by(scene, place, _SUBSETS):
            if not any(names < mention.attributes for names in smaller) and mention.is_clear(scene):
                smaller.append(mention.attributes)
                minimal.append(mention)
    most_first = sorted(shuffled(rng, minimal), key=lambda mention: -len(mention.attributes))
    return first_of_each(most_first, lambda mention: mention.index, MAX_ATTRIBUTES)


def _place_phrases(scene: Scene, rng: np.random.Generator) -> tuple[PlacePhrase, ...]:
    clear: list[PlacePhrase] = []
    for index, thing in enumerate(scene.objects):
        for mention in named_by(scene, index, _PLACED):
            others = [scene.objects[place] for place in mention.fitting(scene) if place != index]
            if others:
                clear += [PlacePhrase(mention, place) for place in PLACES if _stands_out(scene, place, thing, others)]
    return first_of_each(shuffled(rng, clear), lambda phrase: phrase.subject.index, MAX_PLACES)


def _stands_out(scene: Scene, place: str, thing: SceneObject, others: Sequence[SceneObject]) -> bool:
    """Whether ``thing`` is clearly the one at ``place`` among itself and ``others``."""
    margin = PLACE_MARGIN * min(scene.width, scene.height)
    centre, edge = _reach(place, thing)
    reached = [_reach(place, other) for other in others]
    return all(centre - theirs >= margin and edge - outer >= margin for theirs, outer in reached)


def _reach(place: str, thing: SceneObject) -> tuple[float, float]:
    """How far to the side of ``place`` the object's centre and its outer edge lie, in pixels."""
    axis, sign = PLACES[place]
    outer = thing.box[axis] + (thing.box[axis + 2] if sign > 0 else 0)
    return sign * thing.centre[axis], sign * outer
