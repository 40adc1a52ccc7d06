"""Generates a long description of a scene: the position of each object, and all relations between objects."""

from __future__ import annotations

import itertools

from demo.scenes.compose import LONG_PURPOSE, Scene, SceneObject
from demo.scenes.describe import attribute_sets, clearly_true, looks_of
from demo.scenes.vocabulary import RELATIONS
from utils.sequences import shuffled

_ROWS, _COLUMNS = ("upper", "middle", "lower"), ("left", "centre", "right")
(_NAME,) = attribute_sets("colour shape")


def long_caption(scene: Scene) -> str:
    """Returns a clause about the looks and the position of each object, and a clause about each clear relation of two objects.

    Both kinds are in random order, which depends only on the scene. Short captions, in contrast, always start in the same way,
    and mention only the objects and the relations of neighbours.
    """
    rng = scene.rng(LONG_PURPOSE)
    objects = [f"there is {looks_of(obj).indefinite()} in the {_place(scene, obj)} part" for obj in scene.objects]
    relations = [
        f"the {looks_of(subject, _NAME).name()} is {relation} the {looks_of(reference, _NAME).name()}"
        for subject, reference in itertools.permutations(scene.objects, 2)
        for relation in RELATIONS
        if clearly_true(scene, relation, subject, reference)
    ]
    return f"{', '.join([*shuffled(rng, objects), *shuffled(rng, relations)])}"


def _place(scene: Scene, obj: SceneObject) -> str:
    """Returns the cell of a 3 x 3 grid over the image that contains the centre of the object: "upper left", "middle right"."""
    x, y = obj.centre
    return f"{_ROWS[int(3 * y / scene.height)]} {_COLUMNS[int(3 * x / scene.width)]}"
