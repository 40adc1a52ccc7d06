"""Decides by which phrases an object can be singled out; how they are worded is another matter (``wording.py``).

Every phrase fits exactly one object of its scene, beyond doubt. Most of them need a look at the other objects as well.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from demo.scenes.compose import REFERRING_STREAM, Scene, SceneObject, stream
from demo.scenes.describe import Attributes, Mention, RelationPhrase, describe_scene, fitting, named_by
from demo.scenes.vocabulary import PLACES

PLACE_MARGIN = 0.1
"""How far the leftmost object of several lies to the left of the next one, at least, by its centre and by its left edge: a
fraction of the picture's shorter side. The same for the other places."""

MAX_ATTRIBUTES = 2
MAX_PLACES = 2


@dataclass(frozen=True)
class PlacePhrase:
    """Of all objects that the subject's attributes fit, two at least, the one at ``place`` (of ``vocabulary.PLACES``)."""

    subject: Mention
    place: str


@dataclass(frozen=True)
class Referring:
    """Phrases that single out one object each.

    ``relations``: those of the scene's description. ``attributes``: up to :data:`MAX_ATTRIBUTES`; with any attribute left out
    they would fit more objects. ``places``: up to :data:`MAX_PLACES`. Within each of the three no two have one subject.
    """

    relations: tuple[RelationPhrase, ...]
    attributes: tuple[Mention, ...]
    places: tuple[PlacePhrase, ...]


def refer_in_scene(scene: Scene) -> Referring:
    """The phrases of ``scene``: a pure function of the scene. A scene of one object has none: nothing needs telling apart."""
    if len(scene.objects) == 1:
        return Referring((), (), ())
    rng = stream(scene.seed, scene.split, scene.index, REFERRING_STREAM)
    return Referring(describe_scene(scene).relations, _attribute_mentions(scene, rng), _place_phrases(scene, rng))


_SUBSETS: tuple[Attributes, ...] = tuple(
    frozenset(names)
    for number in (1, 2, 3)
    for names in itertools.combinations(("size", "texture", "colour", "shape"), number)
)
"""Smaller sets first. Size, colour, shape and texture together are never needed: colour and shape alone fit one object."""

_PLACED: tuple[Attributes, ...] = tuple(
    frozenset(names) for names in ((), ("shape",), ("colour",), ("size",), ("texture",))
)


def _attribute_mentions(scene: Scene, rng: np.random.Generator) -> tuple[Mention, ...]:
    """The ones that need most attributes come first: each of these fits another object too."""
    found: list[Mention] = []
    for place, thing in enumerate(scene.objects):
        minimal: list[Attributes] = []
        for names in named_by(thing, _SUBSETS):
            if not any(smaller < names for smaller in minimal) and fitting(scene, Mention(place, names)) == [place]:
                minimal.append(names)
        found += [Mention(place, names) for names in minimal]
    shuffled = [found[pick] for pick in rng.permutation(len(found))]
    shuffled.sort(key=lambda mention: -len(mention.attributes))
    chosen: dict[int, Mention] = {}
    for mention in shuffled:
        chosen.setdefault(mention.index, mention)
    return tuple(itertools.islice(chosen.values(), MAX_ATTRIBUTES))


def _place_phrases(scene: Scene, rng: np.random.Generator) -> tuple[PlacePhrase, ...]:
    found: list[PlacePhrase] = []
    for index, thing in enumerate(scene.objects):
        for names in named_by(thing, _PLACED):
            mention = Mention(index, names)
            others = [scene.objects[place] for place in fitting(scene, mention) if place != index]
            if others:
                found += [PlacePhrase(mention, place) for place in PLACES if _stands_out(scene, place, thing, others)]
    chosen: dict[int, PlacePhrase] = {}
    for pick in rng.permutation(len(found)):
        chosen.setdefault(found[pick].subject.index, found[pick])
    return tuple(itertools.islice(chosen.values(), MAX_PLACES))


def _stands_out(scene: Scene, place: str, thing: SceneObject, others: Sequence[SceneObject]) -> bool:
    """Whether ``thing`` is clearly the one at ``place`` among itself and ``others``."""
    margin = PLACE_MARGIN * min(scene.width, scene.height)
    centre, edge = _reach(place, thing)
    reached = [_reach(place, other) for other in others]
    return all(centre - theirs >= margin and edge - outer >= margin for theirs, outer in reached)


def _reach(place: str, thing: SceneObject) -> tuple[float, float]:
    """How far to the side of ``place`` the object's centre and its outer edge lie, in pixels."""
    axis = 0 if place in ("leftmost", "rightmost") else 1
    start, end = thing.box[axis], thing.box[axis] + thing.box[axis + 2]
    return (-thing.centre[axis], -start) if place in ("leftmost", "topmost") else (thing.centre[axis], end)
