"""The comparison of runs with images of any shape and runs with a fixed image size."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from benchmarks.any_shape import GROUPS, main, overlaps, phrases_of
from engine.run_files import CONFIG_FILE, EVALUATION_FILE
from tasks.config import PretrainConfig
from tests.messages import naming
from tests.x2vlm.conftest import data, overrides, run, task  # noqa: F401 (fixtures)
from utils.config import dump_config, load_config
from utils.errors import UserError
from utils.files import write_text
from x2vlm import Box


class Seeing:
    """Stands in for a model: its boxes are those of the red pixels."""

    def locate(self, picture, phrases):
        red = np.argwhere((np.asarray(picture) == (255, 0, 0)).all(axis=2))
        (top, left), (bottom, right) = red.min(axis=0), red.max(axis=0)
        box = [float(each) for each in (left, top, right - left + 1, bottom - top + 1)]
        return [[Box(phrase, *box) for phrase in phrases]]


@pytest.fixture
def records(tmp_path):
    """Two images with two phrases for the same red box."""
    lines = []
    for number, size in enumerate([(40, 15), (20, 24)]):
        image = Image.new("RGB", size, "white")
        ImageDraw.Draw(image).rectangle((3, 5, 8, 10), fill=(255, 0, 0))
        image.save(tmp_path / f"{number}.png")
        elems = [{"grain": "object", "caption": text, "bb": [3, 5, 6, 6]} for text in ("a", "b")]
        elems.append({"grain": "region", "caption": "c", "bb": [0, 0, 9, 9]})
        lines.append(json.dumps({"image": f"{number}.png", "elems": elems}))
    path = tmp_path / "test.jsonl"
    path.write_text("\n".join(lines))
    return path


def test_boxes_in_letterboxed_images_are_compared_in_the_original_images(records):
    phrases = phrases_of(records)
    assert [phrase.text for phrase in phrases] == ["a", "b", "a", "b"]
    for letterboxed in (False, True):
        assert overlaps(Seeing(), phrases, letterboxed=letterboxed).tolist() == [1.0] * 4


def test_phrases_are_grouped_by_the_shape_of_the_image_and_the_size_of_the_box(records):
    phrases = phrases_of(records)
    groups = {name: [belongs(phrase) for phrase in phrases] for name, belongs in GROUPS.items()}
    assert groups["boxes in images from 2:1"] == [True, True, False, False]
    assert groups["boxes in other images"] == [False, False, True, True]
    assert groups["small boxes"] == [False] * 4  # 36 of 600 and of 480 pixels


def test_runs_of_both_kinds_are_compared(run, tmp_path, capsys):  # noqa: F811
    fixed, native = tmp_path / "fixed", tmp_path / "native"
    for folder, recall in ((fixed, 0.5), (native, 0.75)):
        shutil.copytree(run("pretrain"), folder)
        metrics = {"image to text R@1 (cosine)": {"value": recall, "unit": "share"}, "masked word": {"value": 0.1}}
        write_text(folder / EVALUATION_FILE, json.dumps({"held-out": metrics}))
    config = load_config(
        native / CONFIG_FILE, ["model.vision.image_size={max_patches: 64, patch_size: 8}"], PretrainConfig
    )
    write_text(native / CONFIG_FILE, dump_config(config))
    assert main([native, fixed]) == 0
    _, _, recall, *boxes = capsys.readouterr().out.splitlines()
    assert recall == "| image to text R@1 (cosine) | | 50.0 | 75.0 | +25.0 |"
    phrases = phrases_of(Path(config.evaluation.files[0]))
    assert boxes[0].startswith(f"| all boxes | {len(phrases)} | ")
    assert not any("from 2:1" in row for row in boxes) and any("letterboxed" in row for row in boxes)
    for row in boxes:  # the scenes are squares, for which both runs are the same model
        _, _, measured, other, gain = row.strip("| ").split(" | ")
        assert measured == other and gain.startswith("+0.0 [")

    with pytest.raises(UserError, match=naming("[0]", "[]")):
        main([fixed])
