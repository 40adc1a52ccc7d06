"""Scenes match their records: boxes are compared with drawn pixels, texts with objects, and splits with each other."""

import itertools
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from demo.folder import FolderFlags
from demo.scenes.build import scenes
from demo.scenes.captions import MAX_PIECES, captions_by_language, pieces
from demo.scenes.compose import compose_scene, draw_size, split_of
from demo.scenes.describe import MARGIN, describe_scene, looks_of
from demo.scenes.draw import draw_scene
from demo.scenes.long import long_caption
from demo.scenes.records import records_of
from demo.scenes.vocabulary import COLOURS, PLAIN, RELATIONS, SHAPES, SIZES
from tests.demo.scene_texts import COUNTS, fitting, further, meant_by, read
from tests.messages import naming
from utils.commands import call
from utils.errors import UserError

SCENES = [compose_scene(0, split, index) for split in ("train", "val", "test") for index in range(40)]


def _tight_box(changed: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1] - columns[0] + 1), int(rows[-1] - rows[0] + 1)


@pytest.mark.parametrize("size", [64, (96, 48), 150])
def test_a_box_encloses_exactly_the_pixels_that_its_object_changes(size):
    for index in range(12):
        scene = compose_scene(3, "train", index, size)
        image = draw_scene(scene)
        assert image.shape == (scene.height, scene.width, 3)
        assert image.dtype == np.uint8
        for obj in scene.objects:
            others = tuple(other for other in scene.objects if other is not obj)
            without = draw_scene(replace(scene, objects=others))
            assert _tight_box((image != without).any(axis=2)) == obj.box


def test_boxes_are_within_the_image_and_never_overlap():
    for scene in SCENES:
        covered = np.zeros((scene.height, scene.width), dtype=int)
        for x, y, w, h in (obj.box for obj in scene.objects):
            assert x >= 0
            assert y >= 0
            assert x + w <= scene.width
            assert y + h <= scene.height
            covered[y : y + h, x : x + w] += 1
        assert covered.max() == 1


def test_every_large_object_is_larger_than_every_small_one():
    extents = {size: [t.form.extent for s in SCENES for t in s.objects if t.size == size] for size in SIZES}
    assert max(extents["small"]) < 0.8 * min(extents["large"])


def test_each_shape_has_a_distinct_outline():
    filled = {}
    for scene in (compose_scene(5, "train", index, 200) for index in range(60)):
        for obj in scene.objects:
            filled.setdefault(obj.shape, []).append(float(obj.raster().coverage.mean()))
    means = {shape: float(np.mean(shares)) for shape, shares in filled.items()}
    assert set(means) == set(SHAPES)
    # Fractions of the bounding box, up to rotation and partially covered edge pixels: circle pi/4, square near 1, triangle and
    # diamond near a half.
    assert means["circle"] == pytest.approx(np.pi / 4, abs=0.04)
    assert means["square"] > 0.8
    assert 0.4 < means["triangle"] < 0.56
    assert 0.4 < means["diamond"] < 0.58
    assert means["star"] < 0.5


def test_the_hue_of_an_object_dominates_its_texture():
    for scene in SCENES:
        image = draw_scene(scene).astype(float)
        for obj in scene.objects:
            x, y, w, h = obj.box
            inside = obj.raster().coverage == 1
            mean = image[y : y + h, x : x + w][inside].mean(axis=0)
            tints = {name: (np.array(c.rgb) + np.array(c.accent)) / 2 for name, c in COLOURS.items()}
            distances = {
                name: min(np.linalg.norm(mean - tint), np.linalg.norm(mean - COLOURS[name].rgb))
                for name, tint in tints.items()
            }
            assert min(distances, key=distances.__getitem__) == obj.colour


def test_no_background_hides_an_object():
    for scene in SCENES:
        for obj, tone in itertools.product(scene.objects, scene.background.tones):
            assert np.linalg.norm(np.subtract(obj.rgb, tone)) > 60


def phrases(scene, grain) -> list[tuple[list[int], str]]:
    """Box and text of every phrase of a grain, from the records written for the scene's split."""
    elems = records_of(scene)[""][0]["elems"]
    if scene.split != "train":
        return [(elem["bb"], elem["caption"]) for elem in elems if elem["grain"] == grain]
    chosen = slice(0, 1) if grain == "object" else slice(1, None)
    return [(elem["bb"], text) for elem in elems for text in elem["caption"][chosen]]


def test_each_object_phrase_names_all_distinguishing_attributes():
    for scene in SCENES:
        for (box, text), obj in zip(phrases(scene, "object"), scene.objects, strict=True):
            assert fitting(scene, text) == [obj]
            assert box == list(obj.box)
            article = "an" if obj.size[0] in "aeiou" else "a"
            texture = [] if obj.texture == PLAIN else [obj.texture]
            assert text == " ".join([article, obj.size, *texture, obj.colour, obj.shape])


def test_a_training_record_never_has_two_elements_with_the_same_box():
    for scene in SCENES:
        if scene.split == "train":
            boxes = [tuple(elem["bb"]) for elem in records_of(scene)[""][0]["elems"]]
            assert len(set(boxes)) == len(boxes)


def test_each_relational_phrase_is_true_and_refers_to_one_object():
    seen = set()
    for scene in SCENES:
        for box, text in phrases(scene, "relation"):
            (subject,), relation, reference = meant_by(scene, text)
            assert list(subject.box) == box
            axis = 0 if relation in ("left of", "right of") else 1
            along = further(relation, subject, reference)
            assert along >= MARGIN * min(scene.width, scene.height)
            assert along > abs(reference.centre[1 - axis] - subject.centre[1 - axis])
            seen.add(relation)
    assert seen == set(RELATIONS)


def test_each_relation_of_a_caption_is_true():
    checked = 0
    for scene in SCENES:
        description = describe_scene(scene)
        for link, (first, second) in zip(description.links, itertools.pairwise(description.chain), strict=True):
            if link is not None:
                assert further(link, scene.objects[first], scene.objects[second]) > 0
                checked += 1
    assert checked > 50


def test_each_sentence_of_a_long_caption_is_true():
    sides = {"upper": (1, 0), "lower": (1, 2), "left": (0, 0), "right": (0, 2)}
    relations = 0
    for scene in SCENES:
        text = records_of(scene, long=True)[""][0]["long_caption"]
        assert text == long_caption(scene)
        sentences = text.split(", ")
        for obj in scene.objects:
            (place,) = [
                each.partition(" in the ")[2]
                for each in sentences
                if f"there is {looks_of(obj).indefinite()} in" in each
            ]
            for word, (axis, third) in sides.items():
                length = (scene.width, scene.height)[axis]
                assert (word in place) == (length * third / 3 <= obj.centre[axis] < length * (third + 1) / 3)
        for sentence in [each for each in sentences if not each.startswith("there is ")]:
            (subject,), relation, reference = meant_by(scene, sentence.replace(" is ", " "))
            assert further(relation, subject, reference) > 0
            relations += 1
    assert relations > 500
    assert "long_caption" not in records_of(SCENES[0])[""][0]


def test_captions_name_every_object_within_the_token_budget():
    for scene in SCENES:
        texts = captions_by_language(scene)["en"]
        assert len(set(texts)) == 2
        for text in texts:
            assert pieces(text) <= MAX_PIECES
            for obj in scene.objects:
                assert f"{obj.colour} {obj.shape}" in text


DIGEST = """
import hashlib, json
from demo.scenes.compose import compose_scene
from demo.scenes.records import records_of

records = [records_of(compose_scene(0, split, index), long=True) for split in ("train", "test") for index in range(40)]
print(hashlib.sha256(json.dumps(records).encode()).hexdigest())
"""


def test_texts_do_not_depend_on_the_process():
    """Python orders sets of strings differently in each process."""
    digests = {
        subprocess.run(
            [sys.executable, "-c", DIGEST],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            cwd=Path(__file__).parent.parent.parent,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in range(1, 4)
    }
    assert len(digests) == 1


def test_a_scene_does_not_depend_on_the_order_of_drawing():
    forwards = [compose_scene(7, "test", index) for index in range(8)]
    backwards = [compose_scene(7, "test", index) for index in reversed(range(8))][::-1]
    assert forwards == backwards
    assert np.array_equal(draw_scene(forwards[3]), draw_scene(compose_scene(7, "test", 3)))
    assert compose_scene(8, "test", 3) != forwards[3]


def composition_of(scene):
    return tuple(sorted((obj.shape, obj.colour) for obj in scene.objects))


def test_splits_share_no_composition_and_held_out_splits_have_no_duplicates():
    for seed in (0, 1):
        held_out = [
            composition_of(compose_scene(seed, split, index)) for split in ("val", "test") for index in range(60)
        ]
        assert len(set(held_out)) == len(held_out)
    for scene in SCENES:
        assert split_of(composition_of(scene)) == scene.split
        assert len(set(composition_of(scene))) == len(scene.objects)


def test_captions_of_the_test_split_are_distinct():
    scenes = [compose_scene(0, "test", index) for index in range(120)]
    texts = [text for scene in scenes for text in captions_by_language(scene)["en"]]
    assert len(set(texts)) == len(texts)


def test_there_are_one_to_five_objects():
    counts = {len(compose_scene(0, "train", index).objects) for index in range(60)}
    assert counts == {1, 2, 3, 4, 5}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, "dev", 0), "'dev' is not a split"),
        ((-1, "train", 0), "must not be negative"),
        ((0, "train", 0, 16), "16 x 16 pixels is too small"),
    ],
)
def test_compose_names_the_argument_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        compose_scene(*arguments)


def _build(out, overwrite=False, **changes):
    scenes(output=FolderFlags(out=out, overwrite=overwrite), **{"train": 12, "val": 3, "test": 3, **changes})


def test_a_built_folder_holds_the_records_the_images_and_the_facts(folder):
    for split, count in COUNTS.items():
        records = read(folder, split)
        assert len(records) == count
        for index, record in enumerate(records):
            assert record["id"] == f"{split}/{index:06d}"
            with Image.open(folder / record["image"]) as image:
                assert np.array_equal(np.asarray(image), draw_scene(compose_scene(0, split, index)))
    facts = json.loads((folder / "scenes.json").read_text(encoding="utf-8"))
    assert facts["arguments"]["train"] == COUNTS["train"]
    assert (folder / "tokenizer" / "tokenizer.json").exists()
    assert not (folder / ".building").exists()


def test_a_complete_folder_is_kept_and_another_request_is_rejected(tmp_path):
    _build(tmp_path)
    before = (tmp_path / "train.jsonl").stat().st_mtime_ns
    _build(tmp_path)
    assert (tmp_path / "train.jsonl").stat().st_mtime_ns == before
    with pytest.raises(UserError, match=naming("seed=0", "1", "--overwrite")):
        _build(tmp_path, seed=1)
    _build(tmp_path, seed=1, train=2, overwrite=True)
    assert len(list((tmp_path / "images" / "train").iterdir())) == 2


def test_an_unfinished_folder_is_rebuilt(tmp_path):
    _build(tmp_path)
    (tmp_path / "scenes.json").unlink()
    (tmp_path / ".building").write_text("scenes.json\n", encoding="utf-8")
    _build(tmp_path, seed=1)
    assert json.loads((tmp_path / "scenes.json").read_text(encoding="utf-8"))["arguments"]["seed"] == 1


def test_files_of_another_origin_are_never_removed(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "mine.png").write_bytes(b"mine")
    for overwrite in (False, True):
        with pytest.raises(UserError, match=naming("images")):
            _build(tmp_path, overwrite=overwrite)
    assert (tmp_path / "images" / "mine.png").read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--train", "0"], "--train: '0' is not a number from 1"),
        (["--size", "8"], "--size: '8' is not a size from 32"),
        (["--size", "64x"], "--size: '64x'"),
        (["--seed", "x"], "--seed: 'x'"),
    ],
)
def test_a_wrong_flag_is_reported_in_one_line_with_status_2(flags, message, tmp_path, monkeypatch, capsys):
    argv = ["--out", str(tmp_path / "out"), *flags]
    assert call(scenes, argv, "python -m demo.scenes") == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_created_is_reported_in_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("", encoding="utf-8")
    argv = ["--out", str(tmp_path / "file" / "out")]
    assert call(scenes, argv, "python -m demo.scenes") == 2
    assert "cannot be written" in capsys.readouterr().err


def test_scenes_of_different_shapes_have_about_the_same_number_of_pixels():
    sizes = [draw_size(0, "train", index, (64, 96), 4.0) for index in range(200)]
    ratios = [width / height / (64 / 96) for width, height in sizes]
    assert 0.24 < min(ratios) < 0.3 and 3.5 < max(ratios) < 4.1
    assert all(abs(width * height / (64 * 96) - 1) < 0.03 for width, height in sizes)
    assert {draw_size(0, "train", index, (64, 96), 1.0) for index in range(20)} == {(64, 96)}


def test_shapes_with_a_side_below_the_minimum_are_refused(tmp_path):
    with pytest.raises(UserError, match=naming("--aspect 9", "32 pixels", "--size 96")):
        _build(tmp_path, aspect=9.0)
