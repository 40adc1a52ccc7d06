"""Phrases that fit several objects of a scene, one, or none: "all stars", "the two small circles", "the red heart"."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from demo.scenes.compose import SETS_PURPOSE, Scene, SceneObject, one_of
from demo.scenes.describe import Attributes, Looks, attribute_sets, looks_of
from demo.scenes.vocabulary import COLOURS, PLAIN, SHAPES, SIZES, TEXTURES
from utils.sequences import shuffled

Kind = Literal["absent", "one", "several"]

NUMBERS = {2: "two", 3: "three", 4: "four", 5: "five"}
ABSENT_NUMBERS = {"two": 0.85, "three": 0.1, "four": 0.04, "five": 0.01}
"""Frequencies of numbers in phrases that fit no object; similar to the frequencies in phrases that fit objects."""

MAX_PHRASES = 2
"""Maximum number of phrases of each kind for a scene."""

_GROUPS = attribute_sets(
    "shape", "colour", "size", "texture", "size shape", "texture shape", "size colour", "texture colour"
)
_SINGLES = (*_GROUPS, *attribute_sets("colour shape", "size colour shape"))
_VALUES: dict[str, tuple[str, ...]] = {
    "colour": tuple(COLOURS),
    "size": tuple(SIZES),
    "texture": tuple(texture for texture in TEXTURES if texture != PLAIN),
    "shape": SHAPES,
}
"""The words for each attribute. The order determines the scenes."""


class SetPhrase(NamedTuple):
    """A phrase, and the indices of the objects of the scene that it fits."""

    kind: Kind
    text: str
    objects: tuple[int, ...]


def set_phrases(scene: Scene) -> list[SetPhrase]:
    """Returns phrases for sets of objects, with equal numbers of phrases that fit several objects, one, and none. The phrases
    depend only on the scene.

    A scene in which no two objects share an attribute has no phrases. The form of a phrase does not reveal whether it fits any
    object: in each form ("the star", "all stars", "the two stars"), about a third of the phrases fit no object, and these differ
    from other phrases in one attribute.
    """
    rng = scene.rng(SETS_PURPOSE)
    by_kind: dict[Kind, list[SetPhrase]] = {"several": [], "one": [], "absent": []}
    for attributes in shuffled(rng, _SINGLES):
        for looks in sorted({looks_of(obj, attributes) for obj in scene.objects}, key=str):
            if _named(looks) != attributes:
                continue  # a plain texture is never mentioned
            phrase = _phrase(scene, looks, rng)
            by_kind[phrase.kind].append(phrase)
            changed = _changed(scene, looks, rng)
            if changed is not None:
                by_kind["absent"].append(_phrase(scene, changed, rng))
    count = min(MAX_PHRASES, *map(len, by_kind.values()))
    return [phrase for phrases in by_kind.values() for phrase in shuffled(rng, phrases)[:count]]


def _phrase(scene: Scene, looks: Looks, rng: np.random.Generator) -> SetPhrase:
    """Returns a phrase for all objects with these looks."""
    objects = _fitting(scene.objects, looks)
    count = len(objects)
    # Half of the phrases say "all". "The star" would be ambiguous for two stars. If there are two stars, "the three stars" could
    # mean these stars or none.
    says_all, is_singular = rng.random() < 0.5, rng.random() < 0.5
    if says_all:
        text = f"all {_plural(looks)}"
    elif count == 1 or (count == 0 and is_singular):
        text = f"the {looks.name()}"
    else:
        number = NUMBERS[count] if count else str(rng.choice(list(ABSENT_NUMBERS), p=list(ABSENT_NUMBERS.values())))
        text = f"the {number} {_plural(looks)}"
    return SetPhrase("absent" if not objects else "one" if count == 1 else "several", text, objects)


def _changed(scene: Scene, looks: Looks, rng: np.random.Generator) -> Looks | None:
    """Returns looks that differ in one attribute and fit no object, or None if all such looks fit an object."""
    named = _named(looks)
    others = [
        looks._replace(**{name: value})
        for name, values in _VALUES.items()
        if name in named
        for value in values
        if not _fitting(scene.objects, looks._replace(**{name: value}))
    ]
    return one_of(rng, others) if others else None


def _named(looks: Looks) -> Attributes:
    return frozenset(name for name, value in looks._asdict().items() if value is not None)


def _fitting(objects: Sequence[SceneObject], looks: Looks) -> tuple[int, ...]:
    """Returns the indices of the objects that have all attributes of the looks."""
    return tuple(
        index
        for index, obj in enumerate(objects)
        if all(getattr(obj, name) == getattr(looks, name) for name in _named(looks))
    )


def _plural(looks: Looks) -> str:
    name = looks.name()
    return f"{name}es" if name.endswith("s") else f"{name}s"
