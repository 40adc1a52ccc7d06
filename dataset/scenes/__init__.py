"""Scenes that the project draws itself: pictures of shapes, exact boxes, and true texts at three grains.

``compose_scene`` decides what a scene holds, ``draw_scene`` draws it, ``describe_scene`` decides what is said of it, the
functions of ``wording`` say it in English, ``scene_record`` joins all of that to a record, ``build`` fills a folder.
Everything is a pure function of (seed, split, index).
"""

from dataset.scenes.build import build, scene_record
from dataset.scenes.compose import Scene, SceneObject, compose_scene, split_of
from dataset.scenes.describe import Description, describe_scene
from dataset.scenes.draw import draw_scene
from dataset.scenes.wording import captions, noun_phrase, relation_phrase

__all__ = [
    "Description",
    "Scene",
    "SceneObject",
    "build",
    "captions",
    "compose_scene",
    "describe_scene",
    "draw_scene",
    "noun_phrase",
    "relation_phrase",
    "scene_record",
    "split_of",
]
