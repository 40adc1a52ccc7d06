"""Describes a scene: generates phrases that refer to one object, and the order and relations of the objects in captions.

Each phrase fits exactly one object of its scene, and each relation is clearly true.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from demo.scenes.compose import REFERRING_PURPOSE, TEXT_PURPOSE, Scene, SceneObject, one_of
from demo.scenes.vocabulary import PLACES, PLAIN, RELATIONS
from utils.sequences import shuffled

T = TypeVar("T")

MARGIN = 0.2
"""Minimum distance between two centres along the axis of a relation, as a fraction of the shorter side of the image."""

DOMINANCE = 1.2
"""Minimum ratio of the distance along the axis of a relation to the distance across the axis."""

MAX_RELATIONS = 3
MAX_ATTRIBUTES = 2
MAX_PLACES = 2

PLACE_MARGIN = 0.1
"""Minimum distance between the leftmost of several objects and the next object, both between their centres and between their left
edges, as a fraction of the shorter side of the image. The other sides are treated analogously."""

Attributes = frozenset[str]
"""The attributes that a phrase names: "size", "texture", "colour", "shape". Without "shape", the noun is the word "shape"."""


def attribute_sets(*sets: str) -> tuple[Attributes, ...]:
    """Parses sets of attributes: ``attribute_sets("size shape", "")`` returns the set {size, shape} and the empty set."""
    return tuple(frozenset(names.split()) for names in sets)


ALL_ATTRIBUTES: Attributes = frozenset({"size", "texture", "colour", "shape"})
_SUBJECTS = attribute_sets("shape", "size shape", "texture shape", "colour shape", "colour", "size")
_REFERENCES = attribute_sets("colour shape", "size colour shape", "shape", "colour")
_SUBSETS: tuple[Attributes, ...] = tuple(
    frozenset(names)
    for number in (1, 2, 3)
    for names in itertools.combinations(("size", "texture", "colour", "shape"), number)
)
"""Smaller sets first. All four attributes together are never needed, because colour and shape identify an object."""

_PLACED = attribute_sets("", "shape", "colour", "size", "texture")


class Looks(NamedTuple):
    """The looks of an object, in the order of an English phrase. An attribute is None if it is not mentioned."""

    size: str | None = None
    texture: str | None = None
    colour: str | None = None
    shape: str | None = None

    def name(self) -> str:
        """Returns an English phrase without an article: "small red shape"."""
        return " ".join([*(word for word in self[:-1] if word is not None), self.shape or "shape"])

    def indefinite(self) -> str:
        """Returns an English phrase with an article: "a striped red star", "an orange shape"."""
        return f"{'an' if self.name()[0] in 'aeiou' else 'a'} {self.name()}"


class Mention(NamedTuple):
    """A mention of the object at ``object_index`` in ``scene.objects``, with the attributes that it names."""

    scene: Scene
    object_index: int
    attributes: Attributes

    def name(self) -> str:
        """Returns an English phrase without an article."""
        return looks_of(self.scene.objects[self.object_index], self.attributes).name()

    def fitting(self) -> list[int]:
        """Returns the indices of all objects of the scene that have the named attributes, in order."""
        values = [[getattr(obj, name) for name in self.attributes] for obj in self.scene.objects]
        return [index for index, value in enumerate(values) if value == values[self.object_index]]

    def is_clear(self) -> bool:
        """Returns True if no other object fits."""
        return len(self.fitting()) == 1


class Phrase(NamedTuple):
    """An English text that refers only to the object at ``object_index`` in ``scene.objects``."""

    object_index: int
    text: str


class Description(NamedTuple):
    """Relational phrases of a scene, and the order of its captions.

    Attributes:
        relations: up to :data:`MAX_RELATIONS` phrases such as "the small circle left of the blue square", at most one per object.
        listed: indices of the objects, in the order of a caption that lists them.
        chain: indices of the objects, in the order of a caption about their arrangement.
        links: ``links[i]`` is the true relation of ``chain[i]`` to ``chain[i + 1]``, or None if no relation is clear.
    """

    relations: tuple[Phrase, ...]
    listed: tuple[int, ...]
    chain: tuple[int, ...]
    links: tuple[str | None, ...]


@functools.lru_cache(maxsize=1)
def describe_scene(scene: Scene) -> Description:
    """Returns the description of ``scene``, which depends only on the scene. It is cached, because several records need it."""
    rng = scene.rng(TEXT_PURPOSE)
    listed = tuple(int(index) for index in rng.permutation(len(scene.objects)))
    return Description(_relation_phrases(scene, rng), listed, *_chain(scene))


def clearly_true(scene: Scene, relation: str, subject: SceneObject, reference: SceneObject) -> bool:
    """Returns True if ``relation`` is clearly true: the boxes do not overlap along its axis, and the centres are far apart along
    the axis and closer to each other across it."""
    axis, sign = RELATIONS[relation]
    before, after = (subject, reference) if sign > 0 else (reference, subject)
    along = after.centre[axis] - before.centre[axis]
    across = abs(after.centre[1 - axis] - before.centre[1 - axis])
    apart = before.box[axis] + before.box[axis + 2] <= after.box[axis]
    return apart and along >= MARGIN * min(scene.width, scene.height) and along >= DOMINANCE * across


def arguably_true(relation: str, subject: SceneObject, reference: SceneObject) -> bool:
    """Returns True if ``relation`` is arguably true: the centre of the subject is on the correct side of the reference's
    centre."""
    axis, sign = RELATIONS[relation]
    return sign * (reference.centre[axis] - subject.centre[axis]) > 0


def looks_of(obj: SceneObject, attributes: Attributes = ALL_ATTRIBUTES) -> Looks:
    """Returns the given attributes of an object. A plain texture is never mentioned."""
    values = {name: getattr(obj, name) for name in attributes}
    return Looks(**{name: word for name, word in values.items() if word != PLAIN})


def named_by(scene: Scene, index: int, sets: Sequence[Attributes]) -> list[Mention]:
    """Returns mentions of an object with each of the sets of attributes. If the object's texture is plain, sets that include the
    texture are skipped."""
    plain = scene.objects[index].texture == PLAIN
    return [Mention(scene, index, names) for names in sets if not (plain and "texture" in names)]


def first_of_each(items: Iterable[T], key: Callable[[T], Hashable], limit: int) -> tuple[T, ...]:
    """Returns the first item with each key, up to ``limit`` items."""
    first: dict[Hashable, T] = {}
    for item in items:
        first.setdefault(key(item), item)
    return tuple(itertools.islice(first.values(), limit))


def _relation_phrases(scene: Scene, rng: np.random.Generator) -> tuple[Phrase, ...]:
    """Generates relational phrases. Phrases that need the relation to identify the object are preferred, and in half of the
    scenes, phrases with a general noun ("the red shape left of …") are used last."""
    true = [
        (mention, relation, other)
        for index, other in itertools.permutations(range(len(scene.objects)), 2)
        for relation in RELATIONS
        if clearly_true(scene, relation, scene.objects[index], scene.objects[other])
        for mention in named_by(scene, index, _SUBJECTS)
    ]
    general_last = bool(rng.integers(2))

    def rank(phrase: tuple[Mention, str, int]) -> tuple[bool, bool]:
        return general_last and "shape" not in phrase[0].attributes, phrase[0].is_clear()

    clear = [phrase for phrase in shuffled(rng, true) if _could_mean(*phrase) == [phrase[0].object_index]]
    chosen = first_of_each(sorted(clear, key=rank), lambda phrase: phrase[0].object_index, MAX_RELATIONS)
    return tuple(
        Phrase(subject.object_index, f"the {subject.name()} {relation} the {reference_to(scene, other, rng).name()}")
        for subject, relation, other in chosen
    )


def _could_mean(subject: Mention, relation: str, reference: int) -> list[int]:
    """Returns the objects to which a relational phrase could refer, including unclear cases."""
    objects = subject.scene.objects
    others = [index for index in subject.fitting() if index != reference]
    return [index for index in others if arguably_true(relation, objects[index], objects[reference])]


def reference_to(scene: Scene, index: int, rng: np.random.Generator) -> Mention:
    """Returns a random mention of an object that fits no other object of the scene."""
    return one_of(rng, [mention for mention in named_by(scene, index, _REFERENCES) if mention.is_clear()])


def _chain(scene: Scene) -> tuple[tuple[int, ...], tuple[str | None, ...]]:
    """Returns the order of the objects, from left to right if they are spread horizontally and otherwise from top to bottom, and
    the true relations between successive objects."""
    x, y = ([obj.centre[axis] for obj in scene.objects] for axis in (0, 1))
    along = x if max(x) - min(x) >= max(y) - min(y) else y
    order = sorted(range(len(scene.objects)), key=lambda index: along[index])
    links = [
        next(
            (name for name in RELATIONS if clearly_true(scene, name, scene.objects[first], scene.objects[second])), None
        )
        for first, second in itertools.pairwise(order)
    ]
    return tuple(order), tuple(links)


def refer_in_scene(scene: Scene) -> tuple[tuple[Phrase, ...], tuple[Phrase, ...]]:
    """Returns phrases with attributes ("the small star") and phrases with a side ("the leftmost red shape").

    They depend only on the scene. A scene with one object has no such phrases, because there is nothing to distinguish it from.
    """
    if len(scene.objects) == 1:
        return (), ()
    rng = scene.rng(REFERRING_PURPOSE)
    return _attribute_phrases(scene, rng), _place_phrases(scene, rng)


def _attribute_phrases(scene: Scene, rng: np.random.Generator) -> tuple[Phrase, ...]:
    """Generates phrases with a minimal set of attributes: if any attribute were left out, the phrase would fit more objects.
    Phrases that need more attributes are preferred."""
    minimal: list[Mention] = []
    for index in range(len(scene.objects)):
        smaller: list[Attributes] = []
        for mention in named_by(scene, index, _SUBSETS):
            if not any(names < mention.attributes for names in smaller) and mention.is_clear():
                smaller.append(mention.attributes)
                minimal.append(mention)
    most_first = sorted(shuffled(rng, minimal), key=lambda mention: -len(mention.attributes))
    chosen = first_of_each(most_first, lambda mention: mention.object_index, MAX_ATTRIBUTES)
    return tuple(Phrase(mention.object_index, f"the {mention.name()}") for mention in chosen)


def _place_phrases(scene: Scene, rng: np.random.Generator) -> tuple[Phrase, ...]:
    """Generates phrases such as "the leftmost red shape": among at least two objects with the named attributes, one is clearly at
    the named side."""
    clear: list[Phrase] = []
    for index, obj in enumerate(scene.objects):
        for mention in named_by(scene, index, _PLACED):
            others = [scene.objects[other] for other in mention.fitting() if other != index]
            sides = [side for side in PLACES if others and _stands_out(scene, side, obj, others)]
            clear += [Phrase(index, f"the {side} {mention.name()}") for side in sides]
    return first_of_each(shuffled(rng, clear), lambda phrase: phrase.object_index, MAX_PLACES)


def _stands_out(scene: Scene, side: str, obj: SceneObject, others: Sequence[SceneObject]) -> bool:
    """Returns True if ``obj`` is clearly farther towards ``side`` than all ``others``."""
    margin = PLACE_MARGIN * min(scene.width, scene.height)
    centre, edge = _reach(side, obj)
    reached = [_reach(side, other) for other in others]
    return all(centre - theirs >= margin and edge - outer >= margin for theirs, outer in reached)


def _reach(side: str, obj: SceneObject) -> tuple[float, float]:
    """Returns how far the centre and the outer edge of an object are towards ``side``, in pixels."""
    axis, sign = PLACES[side]
    outer = obj.box[axis] + (obj.box[axis + 2] if sign > 0 else 0)
    return sign * obj.centre[axis], sign * outer
