"""Average precision of detected boxes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from metrics.detection import average_precisions, is_lvis

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/detection.json").read_text())


def without_frequencies(annotations):
    return annotations | {
        "categories": [{"id": each["id"], "name": each["name"]} for each in annotations["categories"]]
    }


def test_random_boxes_have_the_precision_that_pycocotools_and_lvis_compute():
    annotations, results = GOLDEN["annotations"], GOLDEN["results"]
    assert is_lvis(annotations) and not is_lvis(without_frequencies(annotations))
    assert average_precisions(annotations, results) == pytest.approx(GOLDEN["lvis"], abs=1e-9)
    assert average_precisions(without_frequencies(annotations), results) == pytest.approx(GOLDEN["coco"], abs=1e-9)


def test_the_true_boxes_have_a_precision_of_one_and_no_box_has_zero():
    annotations = without_frequencies(GOLDEN["annotations"])
    perfect = [{**each, "score": 1.0} for each in annotations["annotations"]]
    assert average_precisions(annotations, perfect)["AP"] == pytest.approx(1)
    assert average_precisions(annotations, [])["AP"] == 0
