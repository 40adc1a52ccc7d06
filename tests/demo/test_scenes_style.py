"""Scenes in another style: the same boxes, with other colours, patterns and words."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from PIL import Image

from demo.folder import FolderFlags
from demo.scenes.build import scenes
from demo.scenes.compose import compose_scene
from demo.scenes.draw import draw_scene
from demo.scenes.shapes import PATTERNS
from demo.scenes.styles import STYLES, in_style, in_words_of
from demo.scenes.vocabulary import COLOURS, PLAIN, TEXTURES

TEXTILE = STYLES["textile"]
WORDS = TEXTILE.words()
COUNTS = {"train": 12, "val": 3, "test": 3}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}
    for style in ("plain", "textile"):
        made[style] = tmp_path_factory.mktemp("styles") / style
        scenes(output=FolderFlags(out=made[style]), **COUNTS, style=style)
    return made


def test_every_colour_and_texture_has_a_new_word_and_a_new_look():
    assert set(WORDS) == {*COLOURS, *TEXTURES} - {PLAIN}
    assert len(set(WORDS.values())) == len(WORDS) and not set(WORDS.values()) & set(WORDS)
    assert all(texture in PATTERNS for texture in TEXTILE.textures.values())
    assert all((word[0] in "aeiou") == (new[0] in "aeiou") for word, new in WORDS.items())
    new_tones = {colour for _, colour in TEXTILE.colours.values()}
    assert len(new_tones) == len(COLOURS) and not new_tones & set(COLOURS.values())


def test_the_objects_have_the_tones_of_the_words_in_their_descriptions():
    for index in range(10):
        plain = compose_scene(0, "train", index, 200)
        scene = in_style(plain, TEXTILE)
        pixels = draw_scene(scene)
        for obj, other in zip(scene.objects, plain.objects, strict=True):
            assert (obj.box, obj.colour, obj.texture) == (other.box, other.colour, other.texture)
            x, y, w, h = obj.box
            shown = {tuple(int(value) for value in each) for each in pixels[y : y + h, x : x + w].reshape(-1, 3)}
            assert TEXTILE.colours[obj.colour][1].rgb in shown
            assert (TEXTILE.colours[obj.colour][1].accent in shown) == (obj.texture != PLAIN)


def test_the_records_differ_from_the_plain_ones_in_words_only(folders):
    old = re.compile(rf"\b({'|'.join(WORDS)})\b")
    compared = 0
    for file in sorted(folders["textile"].glob("*.jsonl")):
        plain, textile = (
            [json.loads(line) for line in (folder / file.name).read_text().splitlines()] for folder in folders.values()
        )
        assert in_words_of(TEXTILE, plain) == textile
        assert not old.search(file.read_text())
        compared += len(textile)
    assert compared > 100
    assert {file.name for file in folders["plain"].iterdir()} - {
        file.name for file in folders["textile"].iterdir()
    } == {
        *(f"multilingual_{split}.jsonl" for split in COUNTS),
        "tokenizer_multilingual",
    }


def test_the_images_differ_and_have_the_same_size(folders):
    for path in sorted((folders["textile"] / "images").rglob("*.png")):
        textile, plain = (
            np.asarray(Image.open(folders[s] / path.relative_to(folders["textile"]))) for s in ("textile", "plain")
        )
        assert textile.shape == plain.shape and (textile != plain).any()
