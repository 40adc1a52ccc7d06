"""Decides what is said of a scene, at three grains; how it is worded is another matter (``wording.py``).

Every phrase fits exactly one object of its scene, and every relation that is said is clearly true.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from demo.scenes.compose import TEXT_STREAM, Scene, SceneObject, stream
from demo.scenes.vocabulary import INVERSE, PLAIN, RELATIONS

MARGIN = 0.2
"""Distance of two centres along a relation's axis, at least, as a fraction of the picture's shorter side."""

DOMINANCE = 1.2
"""How much longer the distance along the relation's axis is than the one across, at least."""

MAX_RELATIONS = 3

Attributes = frozenset[str]
"""Which of "size", "texture", "colour" and "shape" a phrase names. Without "shape" the noun is the general "shape"."""

PAIR: Attributes = frozenset({"colour", "shape"})
UNTEXTURED: Attributes = PAIR | {"size"}
EVERYTHING: Attributes = UNTEXTURED | {"texture"}


class Looks(NamedTuple):
    """How something looks, as far as it is said; None: not said. In the order in which English says it."""

    size: str | None = None
    texture: str | None = None
    colour: str | None = None
    shape: str | None = None


@dataclass(frozen=True)
class Mention:
    """An object of the scene, by its place in ``scene.objects``, and the attributes by which it is named."""

    index: int
    attributes: Attributes


@dataclass(frozen=True)
class RelationPhrase:
    """``subject`` stands in ``relation`` to ``reference``; the phrase refers to the subject."""

    subject: Mention
    relation: str
    reference: Mention


@dataclass(frozen=True)
class Description:
    """All that is said of a scene.

    ``objects``: each object of the scene, named by everything that tells it apart: equal looks have equal texts, so that a
    batch never holds a true text as a negative. ``relations``: up to :data:`MAX_RELATIONS`,
    no two of one subject. ``listed``: the objects in the order of a plain list. ``chain``: the objects in the order of a
    sentence; ``links[i]`` is the true relation of ``chain[i]`` to ``chain[i + 1]``, or None where none is clear.
    """

    objects: tuple[Mention, ...]
    relations: tuple[RelationPhrase, ...]
    listed: tuple[int, ...]
    chain: tuple[int, ...]
    links: tuple[str | None, ...]


@functools.lru_cache(maxsize=1)
def describe_scene(scene: Scene) -> Description:
    """What is said of ``scene``: a pure function of the scene, and remembered because several records of a scene say it."""
    rng = stream(scene.seed, scene.split, scene.index, TEXT_STREAM)
    objects = tuple(
        Mention(place, named_by(thing, [EVERYTHING, UNTEXTURED])[0]) for place, thing in enumerate(scene.objects)
    )
    listed = tuple(int(place) for place in rng.permutation(len(scene.objects)))
    chain, links = _chain(scene)
    return Description(objects, _relation_phrases(scene, rng), listed, chain, links)


def clearly(scene: Scene, relation: str, subject: SceneObject, reference: SceneObject) -> bool:
    """Whether ``relation`` holds beyond doubt: the boxes do not overlap along its axis, the centres are far apart along it,
    and nearer to each other across it."""
    axis = 0 if relation in ("left of", "right of") else 1
    before, after = (subject, reference) if relation in ("left of", "above") else (reference, subject)
    along = after.centre[axis] - before.centre[axis]
    across = abs(after.centre[1 - axis] - before.centre[1 - axis])
    apart = before.box[axis] + before.box[axis + 2] <= after.box[axis]
    return apart and along >= MARGIN * min(scene.width, scene.height) and along >= DOMINANCE * across


def vaguely(relation: str, subject: SceneObject, reference: SceneObject) -> bool:
    """Whether someone could say so: the subject's centre lies on the relation's side of the reference's."""
    axis = 0 if relation in ("left of", "right of") else 1
    difference = reference.centre[axis] - subject.centre[axis]
    return difference > 0 if relation in ("left of", "above") else difference < 0


def fitting(scene: Scene, mention: Mention) -> list[int]:
    """The objects that the mentioned attributes fit."""
    names = [getattr(scene.objects[mention.index], attribute) for attribute in mention.attributes]
    return [
        place
        for place, thing in enumerate(scene.objects)
        if [getattr(thing, attribute) for attribute in mention.attributes] == names
    ]


def refers_to(scene: Scene, phrase: RelationPhrase) -> list[int]:
    """The objects that a relational phrase could mean, vague cases included."""
    reference = scene.objects[phrase.reference.index]
    return [
        place
        for place in fitting(scene, phrase.subject)
        if place != phrase.reference.index and vaguely(phrase.relation, scene.objects[place], reference)
    ]


def looks_of(thing: SceneObject, attributes: Attributes = EVERYTHING) -> Looks:
    """The named attributes of an object; a plain texture is not spoken of."""
    said = {name: getattr(thing, name) for name in attributes}
    return Looks(**{name: word for name, word in said.items() if word != PLAIN})


def named_by(thing: SceneObject, sets: Sequence[Attributes]) -> list[Attributes]:
    """Those of the sets by which the object can be named: a plain texture is not spoken of."""
    return [chosen for chosen in sets if "texture" not in chosen or thing.texture != PLAIN]


_SUBJECTS: tuple[Attributes, ...] = tuple(
    frozenset(names)
    for names in (("shape",), ("size", "shape"), ("texture", "shape"), ("colour", "shape"), ("colour",), ("size",))
)
_REFERENCES: tuple[Attributes, ...] = tuple(
    frozenset(names) for names in (("colour", "shape"), ("size", "colour", "shape"), ("shape",), ("colour",))
)


def _relation_phrases(scene: Scene, rng: np.random.Generator) -> tuple[RelationPhrase, ...]:
    """Phrases that refer to one object each. First come those that need their relation for that; in every other scene the
    ones with a general noun ("the red shape left of …") come last."""
    found = [
        RelationPhrase(Mention(place, names), relation, Mention(other, frozenset()))
        for place, thing in enumerate(scene.objects)
        for other, reference in enumerate(scene.objects)
        for relation in RELATIONS
        if place != other and clearly(scene, relation, thing, reference)
        for names in named_by(thing, _SUBJECTS)
    ]
    general_last = bool(rng.integers(2))
    ranked: dict[tuple[bool, bool], list[RelationPhrase]] = {}
    for pick in rng.permutation(len(found)):
        phrase = found[pick]
        if refers_to(scene, phrase) == [phrase.subject.index]:
            general = general_last and "shape" not in phrase.subject.attributes
            needless = len(fitting(scene, phrase.subject)) == 1
            ranked.setdefault((general, needless), []).append(phrase)
    chosen: dict[int, RelationPhrase] = {}
    for rank in sorted(ranked):
        for phrase in ranked[rank]:
            chosen.setdefault(phrase.subject.index, phrase)
    first = list(chosen.values())[:MAX_RELATIONS]
    return tuple(replace(phrase, reference=reference_to(scene, phrase.reference.index, rng)) for phrase in first)


def reference_to(scene: Scene, place: int, rng: np.random.Generator) -> Mention:
    """One of the ways to name an object so that nothing else in the scene fits."""
    mentions = [Mention(place, names) for names in named_by(scene.objects[place], _REFERENCES)]
    clear = [mention for mention in mentions if fitting(scene, mention) == [place]]
    return clear[rng.integers(len(clear))]


def _chain(scene: Scene) -> tuple[tuple[int, ...], tuple[str | None, ...]]:
    """From left to right where the objects lie side by side, and otherwise from the top down, with the true relations."""
    xs = [thing.centre[0] for thing in scene.objects]
    ys = [thing.centre[1] for thing in scene.objects]
    key = xs if max(xs) - min(xs) >= max(ys) - min(ys) else ys
    order = sorted(range(len(scene.objects)), key=lambda place: key[place])
    links: list[str | None] = []
    for place, following in itertools.pairwise(order):
        things = scene.objects[place], scene.objects[following]
        links.append(next((name for name in INVERSE if clearly(scene, name, *things)), None))
    return tuple(order), tuple(links)
