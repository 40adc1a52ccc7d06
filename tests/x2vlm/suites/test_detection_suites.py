"""Suites that score the boxes of a detector again."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.messages import naming
from tests.x2vlm.suites.official import FOLDERS
from utils.errors import UserError
from x2vlm.suites import suite_named
from x2vlm.suites.suite import table


def results_of(name, folder, model, draws=1, kinds=()):
    suite = suite_named(name)
    judged = suite.judge(model("pretrain"), suite.read(folder, kinds))
    return suite, judged, suite.results(judged, draws=draws)


@pytest.mark.parametrize("name", ["coco-boxes", "lvis-boxes"])
def test_the_right_and_the_wrong_label_give_half_of_the_precision(name, model, tmp_path):
    """One of two true boxes is found. Without the image in which it is, nothing is found, and without the other, all is."""
    FOLDERS[name][0](tmp_path)
    suite, judged, found = results_of(name, tmp_path, model)
    for each in found.values():
        by_measure = {result.measure: result for result in each}
        assert by_measure["AP50"].value == pytest.approx(0.5, abs=0.01)
        assert by_measure["AP50"].interval == (0.0, 1.0)  # the standard error is 0.5
        assert {"APm", "APl"}.isdisjoint(by_measure), "there are no such objects"
        assert ("APr" in by_measure) == (name == "lvis-boxes")
    assert set(judged.kinds) == set(suite.sets)
    assert "text only" not in table(suite, found, judged)


def test_the_scores_are_those_of_the_detector_and_of_the_model(model, tmp_path):
    FOLDERS["coco-boxes"][0](tmp_path)
    _, judged, _ = results_of("coco-boxes", tmp_path, model, draws=0)
    detector, constant, replaced, multiplied, replaced_none, multiplied_none = (
        each["model"] for each in judged.values.values()
    )
    images = [tmp_path / f"val2017/{number}.jpg" for number in (1, 2)]
    scored = model("pretrain").score(images, [[(2, 3, 20, 15)]] * 2, [["red star"], ["heart"]])
    np.testing.assert_allclose(detector, [0.5, 1.0])
    np.testing.assert_allclose(constant, 1.0)
    np.testing.assert_allclose(replaced, [each.matching[0, 0] for each in scored], atol=1e-5)
    np.testing.assert_allclose(multiplied, replaced * detector)
    np.testing.assert_allclose(multiplied_none, replaced_none * detector)
    assert (replaced_none < replaced).all()


def test_data_sets_of_odinw_are_found_and_averaged(model, tmp_path):
    FOLDERS["odinw"][0](tmp_path)
    path = tmp_path / "Raccoon/test/detections.json"
    rows = json.loads(path.read_text())
    path.write_text(json.dumps([row | {"category_id": 2} for row in rows]))  # nothing is right
    _, _, found = results_of("odinw", tmp_path, model)
    values = {result.name: result.value for result in found["detector's score"]}
    assert values["Raccoon/test: AP50"] == 0
    assert values["mean: AP50"] == pytest.approx(values["Aquarium/test: AP50"] / 2)
    _, judged, found = results_of("odinw", tmp_path, model, draws=0, kinds=["Aquarium/test"])
    assert set(judged.kinds) == {"Aquarium/test"}
    assert all(result.interval is None and result.row == "Aquarium/test" for each in found.values() for result in each)


def test_files_without_true_boxes_are_rejected(tmp_path):
    FOLDERS["coco-boxes"][0](tmp_path)
    path = tmp_path / "annotations/instances_val2017.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"annotations": []}))
    with pytest.raises(UserError, match=naming("instances_val2017.json", "no true boxes")):
        suite_named("coco-boxes").read(tmp_path, ())
