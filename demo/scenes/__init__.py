"""Scenes that the project draws itself: pictures of shapes, exact boxes, and true texts at three grains.

``compose_scene`` decides what a scene holds, ``draw_scene`` draws it, ``describe_scene`` decides what is said of it, the
functions of ``wording`` say it in English, ``scene_record`` joins all of that to a record, ``build`` fills a folder.
Everything is a pure function of (seed, split, index). Over the same pictures, ``refer_in_scene`` decides by which phrases an
object can be singled out, ``ask_about`` what is asked about it, and ``statement_sets`` what is stated of two pictures of a
split, truly and falsely.
"""

from demo.scenes.build import build, question_records, referring_record, scene_record
from demo.scenes.compose import Scene, SceneObject, compose_scene, split_of
from demo.scenes.describe import Description, describe_scene
from demo.scenes.draw import draw_scene
from demo.scenes.questions import Question, ask_about
from demo.scenes.referring import Referring, refer_in_scene
from demo.scenes.statements import Statement, StatementSet, statement_sets
from demo.scenes.wording import captions, noun_phrase, place_phrase, question_text, relation_phrase, statement_text

__all__ = [
    "Description",
    "Question",
    "Referring",
    "Scene",
    "SceneObject",
    "Statement",
    "StatementSet",
    "ask_about",
    "build",
    "captions",
    "compose_scene",
    "describe_scene",
    "draw_scene",
    "noun_phrase",
    "place_phrase",
    "question_records",
    "question_text",
    "refer_in_scene",
    "referring_record",
    "relation_phrase",
    "scene_record",
    "split_of",
    "statement_sets",
    "statement_text",
]
