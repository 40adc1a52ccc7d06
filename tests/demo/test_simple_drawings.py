"""The simple drawings show what their answers say."""

from __future__ import annotations

import json
import math

import numpy as np
from PIL import Image
from scipy.spatial import ConvexHull

from tests.demo.simple_drawings import COLOURS, RADII, SIDE, main


def measures(points: np.ndarray, area: float) -> np.ndarray:
    """The area of a shape, relative to the square of its radius and to the area of its convex hull."""
    radius = np.linalg.norm(points - points.mean(axis=0), axis=1).max()
    return np.array([area / radius**2, area / ConvexHull(points).volume])


def measures_of(radii: list[float]) -> np.ndarray:
    angles = 2 * math.pi * np.arange(len(radii)) / len(radii)
    corners = np.array(radii)[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return measures(corners, np.dot(radii, np.roll(radii, 1)) * math.sin(angles[1]) / 2)


def test_each_drawing_shows_its_shape_and_colour_and_has_four_questions(tmp_path):
    assert main(tmp_path, train=40, val=1, test=1) == 0
    records = [json.loads(line) for line in (tmp_path / "questions_train.jsonl").read_text().splitlines()]
    assert len(records) == 4 * 40
    for record, about_shape in zip(records[::4], records[1::4], strict=True):
        assert (record["answer_type"], about_shape["answer_type"]) == ("colour", "shape")
        pixels = np.asarray(Image.open(tmp_path / record["image"])).astype(int)
        assert pixels.shape == (SIDE, SIDE, 3)
        drawn = np.argwhere(np.abs(pixels - pixels[0, 0]).sum(axis=2) > 60)
        seen = measures(drawn, len(drawn))
        difference = {name: np.abs(measures_of(radii) - seen).sum() for name, radii in RADII.items()}
        assert min(difference, key=lambda name: difference[name]) == about_shape["answer"]
        y, x = drawn.mean(axis=0).round().astype(int)
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
