"""Scores of boxes that another program has found."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from scipy.special import expit

from metrics.calibration import Calibration, ModelCalibration
from tests.messages import naming
from utils.errors import UserError
from x2vlm import load
from x2vlm.boxes import region_scores
from x2vlm.calibration import write_calibration
from x2vlm.scoring import evidence

BOXES = [(2, 3, 20, 30), (10, 10, 40, 12), (0, 0, 64, 64)]
PHRASES = ["a red star", "a blue circle"]


@pytest.fixture
def pictures(data):
    return [data / f"images/{number}.png" for number in range(3)]


@pytest.fixture(params=["pretrain", "retrieval"])
def aligned(request, model):
    return model(request.param)


def test_each_pair_has_the_probability_and_the_cosine_of_its_region(model, pictures):
    loaded, image = model("pretrain"), pictures[0]
    (scores,) = loaded.score(image, BOXES, PHRASES)
    view = loaded.read(image)
    width, height = view.size
    with loaded.runtime.running():
        images, texts = loaded.runtime.image_states(loaded.pixels([view])), loaded.encoded(PHRASES)
        embedded = loaded.embed_texts(PHRASES)
        for row, (x, y, w, h) in enumerate(BOXES):
            box = torch.tensor([[(x + w / 2) / width, (y + h / 2) / height, w / width, h / height]])
            expected = region_scores(loaded.network, texts, images, box.expand(2, 4), torch.zeros(2, dtype=torch.long))
            assert scores.matching[row] == pytest.approx(expected.numpy(), abs=1e-5)
            rows, columns = loaded.network.vision.grid
            inside = [
                top < (y + h) / height * rows and top + 1 > y / height * rows
                and left < (x + w) / width * columns and left + 1 > x / width * columns
                for top in range(rows) for left in range(columns)
            ]  # fmt: skip
            mean = images.patches[0, torch.tensor(inside)].mean(dim=0, keepdim=True)
            embedding = torch.nn.functional.normalize(loaded.network.contrastive.vision_proj(mean), dim=1).numpy()
            assert scores.cosine[row] == pytest.approx((embedding @ embedded.T)[0], abs=1e-5)


def test_a_box_of_the_whole_image_scores_like_the_image(aligned, pictures):
    image = pictures[0]
    (scores,) = aligned.score(image, [(0, 0, 1, 1)], PHRASES, unit="fractions")
    assert scores.matching == pytest.approx(aligned.match(image, PHRASES), abs=1e-5)
    assert scores.cosine == pytest.approx(aligned.embed_images(image) @ aligned.embed_texts(PHRASES).T, abs=1e-5)


def test_images_together_have_the_scores_of_each_alone(aligned, pictures, monkeypatch):
    monkeypatch.setattr("x2vlm.scoring.PAIRS", 2)
    boxes, phrases = [BOXES, [], BOXES[1:]], [PHRASES, ["a green square"], PHRASES[::-1]]
    together = aligned.score(pictures, boxes, phrases)
    monkeypatch.undo()
    for scores, image, of_image, texts in zip(together, pictures, boxes, phrases, strict=True):
        (alone,) = aligned.score(image, of_image, texts)
        assert scores.phrases == texts and scores.matching.shape == (len(of_image), len(texts))
        for name in ("cosine", "matching", "absent"):
            assert getattr(scores, name) == pytest.approx(getattr(alone, name), abs=1e-5)


def test_a_phrase_is_absent_if_it_does_not_match_where_the_model_locates_it(model, pictures):
    image = pictures[0]
    own = [box.score for box in model("pretrain").locate(image, PHRASES)[0]]
    whole = model("retrieval").match(image, PHRASES)[0]
    for task, present in (("pretrain", own), ("retrieval", whole)):
        for boxes in ([], BOXES):
            (scores,) = model(task).score(image, boxes, PHRASES)
            assert scores.absent == pytest.approx(1 - np.array(present), abs=1e-5) and scores.probability is None


def test_pixels_and_fractions_are_the_same_boxes_and_parts_outside_are_cut_off(aligned, pictures):
    image = pictures[0]
    width, height = aligned.read(image).size
    (in_pixels,) = aligned.score(image, [(-5, 3, 25, 30)], PHRASES)
    (relative,) = aligned.score(image, [(0, 3 / height, 20 / width, 30 / height)], PHRASES, unit="fractions")
    assert in_pixels.matching == pytest.approx(relative.matching, abs=1e-6)


@pytest.mark.parametrize(
    ("boxes", "facts"),
    [([(1, 2, 3)], ["box 0", "(1, 2, 3)"]), ([BOXES[0], (500, 2, 3, 4)], ["box 1"]), ([(1, 2, 0, 4)], ["box 0"]),
     ([(1, 2, float("nan"), 4)], ["box 0"]), ([("a", 2, 3, 4)], ["box 0"])],
)  # fmt: skip
def test_a_box_without_area_in_the_image_is_rejected_in_one_line(model, pictures, boxes, facts):
    with pytest.raises(UserError, match=naming(*facts)):
        model("pretrain").score(pictures[0], boxes, PHRASES)


def test_lists_of_different_lengths_and_missing_phrases_are_rejected(model, pictures):
    with pytest.raises(UserError, match=naming("2 images", "1 lists of boxes")):
        model("pretrain").score(pictures[:2], [BOXES], [PHRASES, PHRASES])
    with pytest.raises(UserError, match=naming("score", "no phrases")):
        model("pretrain").score(pictures[0], BOXES, [])


def test_a_box_can_be_compared_with_one_phrase_only(aligned, pictures):
    labels = [[1, 0, 1], [0, 1, 1], []]
    boxes = [BOXES, BOXES, []]
    for labelled, every, chosen in zip(
        evidence(aligned, pictures, boxes, [PHRASES] * 3, labels=labels),
        evidence(aligned, pictures, boxes, [PHRASES] * 3),
        labels,
        strict=True,
    ):
        picked = every.boxes[range(len(chosen)), chosen] if chosen else np.zeros((0, 2))
        assert labelled.boxes[:, 0] == pytest.approx(picked, abs=1e-5)
        assert labelled.present == pytest.approx(every.present, abs=1e-6)


def test_a_calibration_gives_probabilities_and_is_saved_with_the_model(run, pictures, tmp_path):
    loaded = load(run("pretrain"))
    calibration = ModelCalibration(
        Calibration((0.5, 2.0), -1.0), Calibration((1.0, 0.0), 0.5, ((-1.0, 0.2), (2.0, 0.9)))
    )
    shutil.copytree(run("pretrain"), tmp_path / "run")
    write_calibration(tmp_path / "run", calibration, loaded.network)
    calibrated = load(load(tmp_path / "run").save(tmp_path / "saved"))
    assert calibrated.calibration == calibration
    (found,) = evidence(calibrated, pictures[0], BOXES, PHRASES)
    (scores,) = calibrated.score(pictures[0], BOXES, PHRASES)
    margins, cosines = np.moveaxis(found.boxes, 2, 0)
    assert scores.probability == pytest.approx(expit(0.5 * margins + 2 * cosines - 1), abs=1e-6)
    assert scores.absent == pytest.approx(1 - np.interp(found.present[:, 0] + 0.5, [-1, 2], [0.2, 0.9]), abs=1e-6)


def test_a_calibration_of_other_weights_is_not_used_and_a_damaged_one_is_an_error(run, tmp_path, caplog):
    folder = tmp_path / "run"
    shutil.copytree(run("pretrain"), folder)
    network = load(folder).network
    with torch.no_grad():
        next(network.matching_head.parameters()).add_(1)
    file = write_calibration(
        folder, ModelCalibration(Calibration((1.0, 1.0), 0.0), Calibration((1.0, 1.0), 0.0)), network
    )
    assert load(folder).calibration is None and "fitted to other weights" in caplog.text
    file.write_text('{"match": {}}')
    with pytest.raises(UserError, match=naming("calibration.json", "is not a calibration")):
        load(folder)
