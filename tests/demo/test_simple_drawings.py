"""The simple drawings show what their answers say."""

from __future__ import annotations

import json

import numpy as np
from PIL import Image

from tests.demo.simple_drawings import COLOURS, RADII, SIDE, main


def test_each_drawing_shows_its_colour_and_has_four_questions(tmp_path):
    assert main(tmp_path, train=40, val=1, test=1) == 0
    records = [json.loads(line) for line in (tmp_path / "questions_train.jsonl").read_text().splitlines()]
    assert len(records) == 4 * 40
    for record in records[::4]:
        assert record["answer_type"] == "colour"
        pixels = np.asarray(Image.open(tmp_path / record["image"])).astype(int)
        assert pixels.shape == (SIDE, SIDE, 3)
        y, x = np.argwhere(np.abs(pixels - pixels[0, 0]).sum(axis=2) > 60).mean(axis=0).round().astype(int)
        distance = {name: np.abs(pixels[y, x] - shade).sum() for name, shade in COLOURS.items()}
        assert min(distance, key=lambda name: distance[name]) == record["answer"]
    assert {record["answer"] for record in records if record["answer_type"] == "shape"} == set(RADII)
    answers = [record["answer"] for record in records if record["answer_type"].startswith("yes/no")]
    assert set(answers) == {"yes", "no"} and 0.3 < answers.count("yes") / len(answers) < 0.7


def test_the_drawings_depend_only_on_the_seed(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        main(tmp_path / name, train=2, val=1, test=1, seed=seed)
    image, again, other = ((tmp_path / name / "images/test_0.png").read_bytes() for name in "abc")
    assert image == again != other
