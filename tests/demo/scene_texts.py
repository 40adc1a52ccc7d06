"""Reads scene records and texts about scenes, independently of the code that wrote them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from demo.scenes.compose import Scene, SceneObject, compose_scene

COUNTS = {"train": 120, "val": 40, "test": 40}
"""The number of scenes in each split of the folder that ``conftest.py`` builds."""

SIDES = {"left of": (0, 1), "right of": (0, -1), "above": (1, 1), "below": (1, -1)}
"""The axis of each relation, and the sign of the reference's offset along it."""


def read(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def scene_of(image: str) -> Scene:
    """The scene that an image in the folder shows."""
    split, index = re.fullmatch(r"images/(\w+)/(\d{6})\.png", image).groups()
    return compose_scene(0, split, int(index))


def fitting(scene: Scene, text: str) -> list[SceneObject]:
    """The objects that match a text such as "a small red star" or "the large shape"."""
    requested = set(text.split()) - {"a", "an", "the"}
    return [obj for obj in scene.objects if requested <= {obj.size, obj.texture, obj.colour, obj.shape, "shape"}]


def further(relation: str, subject: SceneObject, reference: SceneObject) -> float:
    """How much further along the relation's axis the reference is, in pixels. The value is negative if the relation is false."""
    axis, sign = SIDES[relation]
    return sign * (reference.centre[axis] - subject.centre[axis])


def meant_by(scene: Scene, phrase: str) -> tuple[list[SceneObject], str, SceneObject]:
    """The objects that a relational phrase could refer to, its relation, and its reference object."""
    relation = next(name for name in SIDES if f" {name} " in phrase)
    subject, reference = phrase.split(f" {relation} ")
    (other,) = fitting(scene, reference)
    return [obj for obj in fitting(scene, subject) if further(relation, obj, other) > 0], relation, other
