"""Describes a scene at length: what is where, and all relations between the objects."""

from __future__ import annotations

import itertools

from demo.scenes.compose import LONG_STREAM, Scene, SceneObject
from demo.scenes.describe import attribute_sets, clearly, looks_of
from demo.scenes.vocabulary import RELATIONS
from utils.sequences import shuffled

_ROWS, _COLUMNS = ("upper", "middle", "lower"), ("left", "centre", "right")
(_NAME,) = attribute_sets("colour shape")


def long_caption(scene: Scene) -> str:
    """Returns a sentence about the looks and the place of each object, and one about each clear relation of two objects.

    Both kinds are in random order, which depends only on the scene. A short caption begins in the same way each time, and has the
    objects and the relations of neighbours alone.
    """
    rng = scene.rng(LONG_STREAM)
    objects = [f"there is {looks_of(obj).indefinite()} in the {_place(scene, obj)} part" for obj in scene.objects]
    relations = [
        f"the {looks_of(subject, _NAME).name()} is {relation} the {looks_of(reference, _NAME).name()}"
        for subject, reference in itertools.permutations(scene.objects, 2)
        for relation in RELATIONS
        if clearly(scene, relation, subject, reference)
    ]
    return f"{', '.join([*shuffled(rng, objects), *shuffled(rng, relations)])}"


def _place(scene: Scene, obj: SceneObject) -> str:
    """Returns the ninth of the image that has the centre of the object: "upper left", "middle right"."""
    x, y = obj.centre
    return f"{_ROWS[int(3 * y / scene.height)]} {_COLUMNS[int(3 * x / scene.width)]}"
