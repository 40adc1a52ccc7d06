"""Decides what is said of a scene, at three grains; ``wording.py`` puts it into words.

Every phrase fits exactly one object of its scene, and every relation that is said is clearly true.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

import numpy as np

from demo.scenes.compose import TEXT_STREAM, Scene, SceneObject, one_of, shuffled
from demo.scenes.vocabulary import PLAIN, RELATIONS

T = TypeVar("T")

MARGIN = 0.2
"""Distance of two centres along a relation's axis, at least, as a fraction of the image's shorter side."""

DOMINANCE = 1.2
"""How much longer the distance along the relation's axis is than the one across, at least."""

MAX_RELATIONS = 3

Attributes = frozenset[str]
"""Which of "size", "texture", "colour" and "shape" a phrase names. Without "shape" the noun is the general "shape"."""


def attribute_sets(*sets: str) -> tuple[Attributes, ...]:
    """``attribute_sets("size shape", "")`` has the set of size and shape, and the empty one."""
    return tuple(frozenset(names.split()) for names in sets)


UNTEXTURED, EVERYTHING = attribute_sets("size colour shape", "size texture colour shape")
_SUBJECTS = attribute_sets("shape", "size shape", "texture shape", "colour shape", "colour", "size")
_REFERENCES = attribute_sets("colour shape", "size colour shape", "shape", "colour")


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

    def looks(self, scene: Scene) -> Looks:
        """The named attributes of the object."""
        return looks_of(scene.objects[self.index], self.attributes)

    def fitting(self, scene: Scene) -> list[int]:
        """All objects of the scene that these attributes fit, in order."""
        values = [[getattr(thing, name) for name in self.attributes] for thing in scene.objects]
        return [place for place, value in enumerate(values) if value == values[self.index]]

    def is_clear(self, scene: Scene) -> bool:
        """Whether no other object fits."""
        return len(self.fitting(scene)) == 1


@dataclass(frozen=True)
class RelationPhrase:
    """``subject`` stands in ``relation`` to ``reference``; the phrase refers to the subject."""

    subject: Mention
    relation: str
    reference: Mention


@dataclass(frozen=True)
class Description:
    """All that is said of a scene.

    Attributes:
        objects: each object of the scene, named by everything that tells it apart: equal looks have equal texts, so that a
            batch never holds a true text as a negative.
        relations: up to :data:`MAX_RELATIONS`, no two of one subject.
        listed: the objects in the order of a plain list.
        chain: the objects in the order of a sentence.
        links: ``links[i]`` is the true relation of ``chain[i]`` to ``chain[i + 1]``, or None where none is clear.
    """

    objects: tuple[Mention, ...]
    relations: tuple[RelationPhrase, ...]
    listed: tuple[int, ...]
    chain: tuple[int, ...]
    links: tuple[str | None, ...]


@functools.lru_cache(maxsize=1)
def describe_scene(scene: Scene) -> Description:
    """The description of ``scene``: a function of the scene alone, cached because several records of a scene need it."""
    rng = scene.rng(TEXT_STREAM)
    objects = tuple(named_by(scene, place, [EVERYTHING, UNTEXTURED])[0] for place in range(len(scene.objects)))
    listed = tuple(int(place) for place in rng.permutation(len(scene.objects)))
    chain, links = _chain(scene)
    return Description(objects, _relation_phrases(scene, rng), listed, chain, links)


def clearly(scene: Scene, relation: str, subject: SceneObject, reference: SceneObject) -> bool:
    """Whether ``relation`` holds beyond doubt: the boxes do not overlap along its axis, the centres are far apart along it,
    and nearer to each other across it."""
    axis, sign = RELATIONS[relation]
    before, after = (subject, reference) if sign > 0 else (reference, subject)
    along = after.centre[axis] - before.centre[axis]
    across = abs(after.centre[1 - axis] - before.centre[1 - axis])
    apart = before.box[axis] + before.box[axis + 2] <= after.box[axis]
    return apart and along >= MARGIN * min(scene.width, scene.height) and along >= DOMINANCE * across


def vaguely(relation: str, subject: SceneObject, reference: SceneObject) -> bool:
    """Whether someone could say so: the subject's centre lies on the relation's side of the reference's."""
    axis, sign = RELATIONS[relation]
    return sign * (reference.centre[axis] - subject.centre[axis]) > 0


def looks_of(thing: SceneObject, attributes: Attributes = EVERYTHING) -> Looks:
    """The named attributes of an object; a plain texture is never named."""
    values = {name: getattr(thing, name) for name in attributes}
    return Looks(**{name: word for name, word in values.items() if word != PLAIN})


def named_by(scene: Scene, place: int, sets: Sequence[Attributes]) -> list[Mention]:
    """Mentions of an object by each of the sets that can name it: a plain texture names nothing."""
    plain = scene.objects[place].texture == PLAIN
    return [Mention(place, names) for names in sets if not (plain and "texture" in names)]


def first_of_each(items: Iterable[T], key: Callable[[T], Hashable], limit: int) -> tuple[T, ...]:
    """The first item of each key, ``limit`` at most."""
    first: dict[Hashable, T] = {}
    for item in items:
        first.setdefault(key(item), item)
    return tuple(itertools.islice(first.values(), limit))


def _relation_phrases(scene: Scene, rng: np.random.Generator) -> tuple[RelationPhrase, ...]:
    """Phrases that refer to one object each. First come those that need their relation for that; in every other scene the
    ones with a general noun ("the red shape left of …") come last."""
    true = [
        RelationPhrase(mention, relation, Mention(other, frozenset()))
        for place, other in itertools.permutations(range(len(scene.objects)), 2)
        for relation in RELATIONS
        if clearly(scene, relation, scene.objects[place], scene.objects[other])
        for mention in named_by(scene, place, _SUBJECTS)
    ]
    general_last = bool(rng.integers(2))

    def rank(phrase: RelationPhrase) -> tuple[bool, bool]:
        general = general_last and "shape" not in phrase.subject.attributes
        return general, phrase.subject.is_clear(scene)

    clear = [phrase for phrase in shuffled(rng, true) if _refers_to(scene, phrase) == [phrase.subject.index]]
    chosen = first_of_each(sorted(clear, key=rank), lambda phrase: phrase.subject.index, MAX_RELATIONS)
    return tuple(replace(phrase, reference=reference_to(scene, phrase.reference.index, rng)) for phrase in chosen)


def _refers_to(scene: Scene, phrase: RelationPhrase) -> list[int]:
    """The objects that a relational phrase could mean, vague cases included."""
    reference = scene.objects[phrase.reference.index]
    others = [place for place in phrase.subject.fitting(scene) if place != phrase.reference.index]
    return [place for place in others if vaguely(phrase.relation, scene.objects[place], reference)]


def reference_to(scene: Scene, place: int, rng: np.random.Generator) -> Mention:
    """One of the ways to name an object so that nothing else in the scene fits."""
    return one_of(rng, [mention for mention in named_by(scene, place, _REFERENCES) if mention.is_clear(scene)])


def _chain(scene: Scene) -> tuple[tuple[int, ...], tuple[str | None, ...]]:
    """From left to right where the objects lie side by side, and otherwise from the top down, with the true relations."""
    x, y = ([thing.centre[axis] for thing in scene.objects] for axis in (0, 1))
    along = x if max(x) - min(x) >= max(y) - min(y) else y
    order = sorted(range(len(scene.objects)), key=lambda place: along[place])
    links = [
        next((name for name in RELATIONS if clearly(scene, name, scene.objects[first], scene.objects[second])), None)
        for first, second in itertools.pairwise(order)
    ]
    return tuple(order), tuple(links)
