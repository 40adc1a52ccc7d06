"""Decides what is said of a scene: phrases that refer to one object, and the order and the relations in its captions.

Every phrase fits exactly one object of its scene, and every relation is clearly true.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from demo.scenes.compose import REFERRING_STREAM, TEXT_STREAM, Scene, SceneObject, one_of, shuffled
from demo.scenes.vocabulary import PLACES, PLAIN, RELATIONS

T = TypeVar("T")

MARGIN = 0.2
"""Distance of two centres along a relation's axis, at least, as a fraction of the image's shorter side."""

DOMINANCE = 1.2
"""How much longer the distance along the relation's axis is than the one across, at least."""

MAX_RELATIONS = 3
MAX_ATTRIBUTES = 2
MAX_PLACES = 2

PLACE_MARGIN = 0.1
"""How far the leftmost object of several lies to the left of the next one, at least, by its centre and by its left edge: a
fraction of the image's shorter side. The same for the other places."""

Attributes = frozenset[str]
"""Which of "size", "texture", "colour" and "shape" a phrase names. Without "shape" the noun is the general "shape"."""


def attribute_sets(*sets: str) -> tuple[Attributes, ...]:
    """``attribute_sets("size shape", "")`` has the set of size and shape, and the empty one."""
    return tuple(frozenset(names.split()) for names in sets)


EVERYTHING: Attributes = frozenset({"size", "texture", "colour", "shape"})
_SUBJECTS = attribute_sets("shape", "size shape", "texture shape", "colour shape", "colour", "size")
_REFERENCES = attribute_sets("colour shape", "size colour shape", "shape", "colour")
_SUBSETS: tuple[Attributes, ...] = tuple(
    frozenset(names)
    for number in (1, 2, 3)
    for names in itertools.combinations(("size", "texture", "colour", "shape"), number)
)
"""Smaller sets first. Size, colour, shape and texture together are never needed: colour and shape alone fit one object."""

_PLACED = attribute_sets("", "shape", "colour", "size", "texture")


class Looks(NamedTuple):
    """How something looks, as far as it is said; None: not said. In the order in which English says it."""

    size: str | None = None
    texture: str | None = None
    colour: str | None = None
    shape: str | None = None

    def name(self) -> str:
        """English words without an article: "small red shape"."""
        return " ".join([*(word for word in self[:-1] if word is not None), self.shape or "shape"])

    def indefinite(self) -> str:
        """ "a striped red star", "an orange shape"."""
        return f"{'an' if self.name()[0] in 'aeiou' else 'a'} {self.name()}"


class Mention(NamedTuple):
    """An object of a scene, by its place in ``scene.objects``, and the attributes by which it is named."""

    scene: Scene
    place: int
    attributes: Attributes

    def name(self) -> str:
        """English words without an article."""
        return looks_of(self.scene.objects[self.place], self.attributes).name()

    def fitting(self) -> list[int]:
        """All objects of the scene that these attributes fit, in order."""
        values = [[getattr(obj, name) for name in self.attributes] for obj in self.scene.objects]
        return [place for place, value in enumerate(values) if value == values[self.place]]

    def is_clear(self) -> bool:
        """Whether no other object fits."""
        return len(self.fitting()) == 1


class Phrase(NamedTuple):
    """An English text that refers to the object at ``place`` of ``scene.objects``, and to no other."""

    place: int
    text: str


class Description(NamedTuple):
    """Relational phrases of a scene, and the order of its captions.

    Attributes:
        relations: up to :data:`MAX_RELATIONS` phrases such as "the small circle left of the blue square", no two of one object.
        listed: the objects in the order of a plain list.
        chain: the objects in the order of a sentence.
        links: ``links[i]`` is the true relation of ``chain[i]`` to ``chain[i + 1]``, or None where none is clear.
    """

    relations: tuple[Phrase, ...]
    listed: tuple[int, ...]
    chain: tuple[int, ...]
    links: tuple[str | None, ...]


@functools.lru_cache(maxsize=1)
def describe_scene(scene: Scene) -> Description:
    """The description of ``scene``: a function of the scene alone, cached because several records of a scene need it."""
    rng = scene.rng(TEXT_STREAM)
    listed = tuple(int(place) for place in rng.permutation(len(scene.objects)))
    return Description(_relation_phrases(scene, rng), listed, *_chain(scene))


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


def looks_of(obj: SceneObject, attributes: Attributes = EVERYTHING) -> Looks:
    """The named attributes of an object; a plain texture is never named."""
    values = {name: getattr(obj, name) for name in attributes}
    return Looks(**{name: word for name, word in values.items() if word != PLAIN})


def named_by(scene: Scene, place: int, sets: Sequence[Attributes]) -> list[Mention]:
    """Mentions of an object by each of the sets that can name it: a plain texture names nothing."""
    plain = scene.objects[place].texture == PLAIN
    return [Mention(scene, place, names) for names in sets if not (plain and "texture" in names)]


def first_of_each(items: Iterable[T], key: Callable[[T], Hashable], limit: int) -> tuple[T, ...]:
    """The first item of each key, ``limit`` at most."""
    first: dict[Hashable, T] = {}
    for item in items:
        first.setdefault(key(item), item)
    return tuple(itertools.islice(first.values(), limit))


def _relation_phrases(scene: Scene, rng: np.random.Generator) -> tuple[Phrase, ...]:
    """First come those that need their relation to refer to one object; in every other scene the ones with a general noun ("the
    red shape left of …") come last."""
    true = [
        (mention, relation, other)
        for place, other in itertools.permutations(range(len(scene.objects)), 2)
        for relation in RELATIONS
        if clearly(scene, relation, scene.objects[place], scene.objects[other])
        for mention in named_by(scene, place, _SUBJECTS)
    ]
    general_last = bool(rng.integers(2))

    def rank(phrase: tuple[Mention, str, int]) -> tuple[bool, bool]:
        return general_last and "shape" not in phrase[0].attributes, phrase[0].is_clear()

    clear = [phrase for phrase in shuffled(rng, true) if _could_mean(*phrase) == [phrase[0].place]]
    chosen = first_of_each(sorted(clear, key=rank), lambda phrase: phrase[0].place, MAX_RELATIONS)
    return tuple(
        Phrase(subject.place, f"the {subject.name()} {relation} the {reference_to(scene, other, rng).name()}")
        for subject, relation, other in chosen
    )


def _could_mean(subject: Mention, relation: str, reference: int) -> list[int]:
    """The objects that a relational phrase could mean, vague cases included."""
    objects = subject.scene.objects
    others = [place for place in subject.fitting() if place != reference]
    return [place for place in others if vaguely(relation, objects[place], objects[reference])]


def reference_to(scene: Scene, place: int, rng: np.random.Generator) -> Mention:
    """One of the ways to name an object so that nothing else in the scene fits."""
    return one_of(rng, [mention for mention in named_by(scene, place, _REFERENCES) if mention.is_clear()])


def _chain(scene: Scene) -> tuple[tuple[int, ...], tuple[str | None, ...]]:
    """From left to right where the objects lie side by side, and otherwise from the top down, with the true relations."""
    x, y = ([obj.centre[axis] for obj in scene.objects] for axis in (0, 1))
    along = x if max(x) - min(x) >= max(y) - min(y) else y
    order = sorted(range(len(scene.objects)), key=lambda place: along[place])
    links = [
        next((name for name in RELATIONS if clearly(scene, name, scene.objects[first], scene.objects[second])), None)
        for first, second in itertools.pairwise(order)
    ]
    return tuple(order), tuple(links)


def refer_in_scene(scene: Scene) -> tuple[tuple[Phrase, ...], tuple[Phrase, ...]]:
    """Phrases by attributes ("the small star") and by place ("the leftmost red shape"): a function of the scene alone.

    A scene of one object has none: nothing needs telling apart.
    """
    if len(scene.objects) == 1:
        return (), ()
    rng = scene.rng(REFERRING_STREAM)
    return _attribute_phrases(scene, rng), _place_phrases(scene, rng)


def _attribute_phrases(scene: Scene, rng: np.random.Generator) -> tuple[Phrase, ...]:
    """With any attribute left out they would fit more objects. The ones that need most attributes come first."""
    minimal: list[Mention] = []
    for place in range(len(scene.objects)):
        smaller: list[Attributes] = []
        for mention in named_by(scene, place, _SUBSETS):
            if not any(names < mention.attributes for names in smaller) and mention.is_clear():
                smaller.append(mention.attributes)
                minimal.append(mention)
    most_first = sorted(shuffled(rng, minimal), key=lambda mention: -len(mention.attributes))
    chosen = first_of_each(most_first, lambda mention: mention.place, MAX_ATTRIBUTES)
    return tuple(Phrase(mention.place, f"the {mention.name()}") for mention in chosen)


def _place_phrases(scene: Scene, rng: np.random.Generator) -> tuple[Phrase, ...]:
    """Of all objects that the named attributes fit, two at least, the one at a place."""
    clear: list[Phrase] = []
    for place, obj in enumerate(scene.objects):
        for mention in named_by(scene, place, _PLACED):
            others = [scene.objects[other] for other in mention.fitting() if other != place]
            sides = [side for side in PLACES if others and _stands_out(scene, side, obj, others)]
            clear += [Phrase(place, f"the {side} {mention.name()}") for side in sides]
    return first_of_each(shuffled(rng, clear), lambda phrase: phrase.place, MAX_PLACES)


def _stands_out(scene: Scene, side: str, obj: SceneObject, others: Sequence[SceneObject]) -> bool:
    """Whether ``obj`` is clearly the one at ``side`` among itself and ``others``."""
    margin = PLACE_MARGIN * min(scene.width, scene.height)
    centre, edge = _reach(side, obj)
    reached = [_reach(side, other) for other in others]
    return all(centre - theirs >= margin and edge - outer >= margin for theirs, outer in reached)


def _reach(side: str, obj: SceneObject) -> tuple[float, float]:
    """How far towards ``side`` the object's centre and its outer edge lie, in pixels."""
    axis, sign = PLACES[side]
    outer = obj.box[axis] + (obj.box[axis + 2] if sign > 0 else 0)
    return sign * obj.centre[axis], sign * outer
