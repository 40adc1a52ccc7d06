"""Minimal pairs: each text is true of its own scene and false of the other one."""

from __future__ import annotations

import hashlib
import json
from collections import Counter

import pytest

from demo.scenes.compose import Scene, compose_scene, split_of
from demo.scenes.describe import attribute_sets, looks_of
from demo.scenes.pairs import COUNTS, KINDS, OPPOSITES, minimal_pairs
from demo.scenes.records import pair_records

(NAMED,) = attribute_sets("texture colour shape")
SCENES = [compose_scene(0, "test", index) for index in range(100)]
PAIRS = [(scene, pair) for scene in SCENES for pair in minimal_pairs(scene)]


def is_true(text: str, scene: Scene) -> bool:
    """Evaluates a text on a scene, using only the words of the text."""
    places = {looks_of(obj, NAMED).indefinite(): obj.centre for obj in scene.objects}
    if text in COUNTS:
        return COUNTS.index(text) + 1 == len(scene.objects)
    for relation in OPPOSITES:
        if f" {relation} " in text:
            one, two = text.split(f" {relation} ")
            if one not in places or two not in places:
                return False
            (x, y), (other_x, other_y) = places[one], places[two]
            return {"left of": x < other_x, "right of": x > other_x, "above": y < other_y, "below": y > other_y}[
                relation
            ]
    return all(phrase in places for phrase in text.split(" and "))


def test_each_text_is_true_of_one_scene_and_false_of_the_other():
    for scene, pair in PAIRS:
        assert is_true(pair.text, scene), pair
        assert is_true(pair.other_text, pair.other), pair
        assert not is_true(pair.text, pair.other), pair
        assert not is_true(pair.other_text, scene), pair


def test_scenes_with_several_objects_have_pairs_of_each_kind():
    found = Counter(pair.kind for _, pair in PAIRS)
    assert found.keys() == KINDS.keys()
    assert min(found.values()) >= 30


def test_the_scenes_of_a_pair_differ_in_one_respect():
    for scene, pair in PAIRS:
        before, after = set(scene.objects), set(pair.other.objects)
        gone, new = len(before - after), len(after - before)
        expected = {"colours": {(2, 2)}, "relation": {(2, 2)}, "attribute": {(1, 1)}, "count": {(1, 0), (0, 1)}}
        assert (gone, new) in expected[pair.kind]
        assert pair.other.background == scene.background


def test_no_scene_of_the_suite_could_be_a_training_scene():
    for _, pair in PAIRS:
        assert split_of([(obj.shape, obj.colour) for obj in pair.other.objects]) != "train"


def test_the_words_do_not_reveal_which_text_is_right():
    """Counts and textures are about as frequent in true as in false texts of the training data."""
    pairs = [pair for index in range(1500) for pair in minimal_pairs(compose_scene(0, "train", index))]
    for kind, words in (
        ("count", ("one", "two", "three", "four", "five")),
        ("attribute", ("striped", "dotted", "checked")),
    ):
        of_kind = [pair for pair in pairs if pair.kind == kind]
        for word in words:
            right, wrong = (
                sum(word in text.split() for text in texts)
                for texts in zip(*[(p.text, p.other_text) for p in of_kind], strict=True)
            )
            assert right == pytest.approx(wrong, rel=0.15, abs=20), word


def test_the_suite_is_frozen():
    """The results in the documentation were measured on these scenes and texts."""
    digest = hashlib.sha256()
    for scene in SCENES[:20]:
        for record, pair in zip(pair_records(scene), minimal_pairs(scene), strict=True):
            digest.update(json.dumps({**record, "images": len(record["images"])}).encode())
            digest.update(repr([obj.box for obj in pair.other.objects]).encode())
    assert digest.hexdigest() == "80f755168b0114b2e6b8525f2a26bb7ee2ac10b044171229b1fd07abd733b24f"
