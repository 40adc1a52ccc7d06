"""Boxes under crop and flip, and the patches that they cover."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from dataset.records.boxes import (
    SLIVER,
    Crop,
    crop_around,
    flip_box,
    patch_mask,
    share_inside,
    visible_box,
    visible_elements,
)
from dataset.records.schema import Element

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "data_helpers.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", GOLDEN["region_patch_mask"], ids=lambda case: str(case["box_xywh"][0])[:8])
def test_patch_masks_are_the_released_ones(case):
    """Entry 0 of the golden lists is [CLS]."""
    mask = patch_mask(case["box_xywh"], case["image_res"], case["patch_size"])
    assert (torch.nonzero(mask).flatten() + 1).tolist() == case["ones"][1:]


def test_a_patch_mask_is_never_empty_and_stays_on_the_grid():
    for box in ((0, 0, 0.001, 0.001), (31.999, 31.999, 0.001, 0.001), (31, 0, 1, 32), (0, 0, 32, 32)):
        mask = patch_mask(box, 32, 8)
        assert mask.shape == (16,)
        assert mask.any()
    assert patch_mask((0, 0, 32, 32), 32, 8).all()


def test_rounding_at_a_grid_line_adds_no_patches():
    exact = patch_mask((8, 8, 16, 8), 32, 8)
    assert exact.sum() == 2
    assert torch.equal(patch_mask((8 - 1e-9, 8 + 1e-9, 16 + 2e-9, 8), 32, 8), exact)


def test_a_crop_keeps_its_element_whole_and_reaches_every_border():
    rng = np.random.default_rng(0)
    box, width, height = (5.5, 3.2, 10.1, 6.8), 20, 12
    crops = [crop_around(box, width, height, rng) for _ in range(500)]
    assert all(share_inside(box, crop) == pytest.approx(1.0) for crop in crops)
    assert {crop.x0 for crop in crops} == set(range(6))
    assert {crop.y0 for crop in crops} == set(range(4))
    assert {crop.x1 for crop in crops} == set(range(16, 21))
    assert {crop.y1 for crop in crops} == set(range(10, 13))


def test_a_box_at_the_border_can_be_cropped_around():
    rng = np.random.default_rng(0)
    for box in ((0.0, 0.0, 20.0, 12.0), (19.9, 11.9, 0.1, 0.1), (0.0, 0.0, 0.1, 0.1)):
        for _ in range(50):
            crop = crop_around(box, 20, 12, rng)
            assert 0 <= crop.x0 < crop.x1 <= 20
            assert 0 <= crop.y0 < crop.y1 <= 12


def test_boxes_follow_crop_and_flip_to_the_pixel():
    """Oracle: paint the box, crop and flip the painting, and look where the paint is."""
    rng = np.random.default_rng(1)
    for _ in range(50):
        x, y = rng.integers(0, 15), rng.integers(0, 10)
        box = (float(x), float(y), float(rng.integers(1, 21 - x)), float(rng.integers(1, 16 - y)))
        image = torch.zeros(3, 15, 20)
        image[:, y : y + int(box[3]), x : x + int(box[2])] = 1
        other = (float(rng.integers(0, 19)), float(rng.integers(0, 14)), 1.0, 1.0)
        crop = crop_around(other, 20, 15, rng)
        seen = visible_box(box, crop)
        painted = crop.of(image)
        if seen is None:
            assert painted.sum() == 0
            continue
        for view, (cx, cy, w, h) in ((painted, seen), (painted.flip(-1), flip_box(seen))):
            rows, columns = torch.nonzero(view[0], as_tuple=True)
            height, width = view.shape[1:]
            expected = (
                columns.min() / width,
                rows.min() / height,
                (columns.max() + 1) / width,
                (rows.max() + 1) / height,
            )
            assert (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2) == pytest.approx(
                tuple(map(float, expected)), abs=1e-6
            )


def test_a_sliver_is_no_box():
    crop = Crop(0, 0, 1000, 1000)
    assert visible_box((999.5, 0, 5, 1000), crop) is None
    assert visible_box((10, 10, 500, 0.5), crop) is None
    assert visible_box((10, 10, 500, 1.5), crop) == pytest.approx((0.26, 0.01075, 0.5, 0.0015))
    assert SLIVER == 1e-3


def boxes(*values) -> list[Element]:
    return [Element(f"elems[{i}]", value, ("text",)) for i, value in enumerate(values)]


def test_elements_stay_if_enough_of_them_is_visible():
    elements = boxes((0.0, 0.0, 4.0, 4.0), (6.0, 0.0, 4.0, 4.0), (2.0, 0.0, 6.0, 4.0))
    rng = np.random.default_rng(0)
    for _ in range(100):
        crop, found = visible_elements(elements, (10, 10), rng, crop=True, most=3, min_inside=0.5)
        names = {element.name for element, _ in found}
        kept = found[0][0]
        assert share_inside(kept.box, crop) == pytest.approx(1.0)
        others = {e.name for e in elements if e is not kept and share_inside(e.box, crop) > 0.5}
        assert names == {kept.name} | others
        assert all(0 < side <= 1 for _, box in found for side in box)


def test_exactly_half_inside_is_not_enough():
    assert share_inside((0, 0, 4, 4), Crop(2, 0, 10, 10)) == 0.5
    rng = np.random.default_rng(0)
    _, found = visible_elements(boxes((0.0, 0.0, 4.0, 4.0)), (10, 10), rng, crop=True, most=3, min_inside=0.99)
    assert len(found) == 1, "the element that the crop is made around always stays"


def test_no_more_elements_than_asked_for_and_no_crop_where_it_is_off():
    elements = boxes(*[(float(i), 0.0, 1.0, 1.0) for i in range(10)])
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(60):
        crop, found = visible_elements(elements, (10, 10), rng, crop=False, most=4, min_inside=0.5)
        assert crop == Crop(0, 0, 10, 10)
        assert len(found) == 4
        seen |= {element.name for element, _ in found}
    assert len(seen) == 10
    assert visible_elements([], (10, 10), rng, crop=True, most=4, min_inside=0.5)[1] == []
    assert visible_elements(elements, (10, 10), rng, crop=True, most=0, min_inside=0.5)[1] == []


def test_flipping_twice_changes_nothing():
    assert flip_box(flip_box((0.3, 0.4, 0.2, 0.1))) == pytest.approx((0.3, 0.4, 0.2, 0.1))
    assert math.isclose(flip_box((0.25, 0.5, 0.5, 1.0))[0], 0.75)
