"""Average precision of detected boxes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from metrics.detection import _jackknife, average_precisions, is_lvis, standard_errors

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


def test_the_jackknife_gives_the_standard_error_of_a_mean():
    values = np.random.default_rng(0).normal(size=50)
    without = [float(np.delete(values, index).mean()) for index in range(50)]
    assert _jackknife(without) == pytest.approx(values.std(ddof=1) / 50**0.5)


def test_standard_errors_are_zero_for_perfect_results_and_shrink_with_more_images():
    annotations, results = without_frequencies(GOLDEN["annotations"]), GOLDEN["results"]
    perfect = [{**each, "score": 1.0} for each in annotations["annotations"]]
    assert standard_errors(annotations, perfect)["AP"] == pytest.approx(0)
    error = standard_errors(annotations, results)["AP"]
    shifts = {"images": ["id"], "annotations": ["id", "image_id"]}
    copies = {
        key: [row | {name: row[name] + 1000 * copy for name in names} for copy in range(9) for row in annotations[key]]
        for key, names in shifts.items()
    }
    repeated = [{**row, "image_id": 1000 * copy + row["image_id"]} for copy in range(9) for row in results]
    assert 0 < standard_errors({**annotations, **copies}, repeated)["AP"] < error
