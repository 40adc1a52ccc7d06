"""Scores of boxes that another program has found."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.messages import naming
from utils.errors import UserError
from x2vlm.boxes import region_scores

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


def test_a_phrase_is_absent_if_it_matches_neither_a_box_nor_its_own_place(model, pictures):
    loaded, image = model("pretrain"), pictures[0]
    own = [box.score for box in loaded.locate(image, PHRASES)[0]]
    assert loaded.score(image, [], PHRASES)[0].absent == pytest.approx(1 - np.array(own), abs=1e-5)
    (scores,) = loaded.score(image, BOXES, PHRASES)
    assert scores.absent == pytest.approx(1 - np.maximum(scores.matching.max(axis=0), own), abs=1e-5)


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
