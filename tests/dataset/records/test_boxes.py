"""Boxes after crop and flip, and the patches that they cover."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dataset.media.sources import ImageSource
from dataset.records.boxes import (
    Crop,
    crop_around,
    elements_inside,
    flip_box,
    fraction_inside,
    patch_mask,
    visible_box,
    visible_elements,
)
from dataset.records.schema import Element, ImageRecord

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "data_helpers.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", GOLDEN["region_patch_mask"], ids=lambda case: str(case["box_xywh"][0])[:8])
def test_patch_masks_equal_the_released_ones(case):
    """Entry 0 of the golden lists is [CLS]."""
    mask = patch_mask(case["box_xywh"], case["image_res"], case["patch_size"])
    assert (torch.nonzero(mask).flatten() + 1).tolist() == case["ones"][1:]


def test_a_patch_mask_is_never_empty_and_stays_within_the_grid():
    for box in ((0, 0, 0.001, 0.001), (31.999, 31.999, 0.001, 0.001), (31, 0, 1, 32), (0, 0, 32, 32)):
        mask = patch_mask(box, 32, 8)
        assert mask.shape == (16,)
        assert mask.any()
    assert patch_mask((0, 0, 32, 32), 32, 8).all()


def corners(box: tuple[float, float, float, float], side: float) -> tuple[float, float, float, float]:
    cx, cy, w, h = (value * side for value in box)
    return cx - w / 2, cy - h / 2, w, h


def test_a_box_on_grid_lines_covers_only_its_patches_after_crop_flip_and_resize():
    """The box covers whole patches of the input and comes from a region of a larger image. Rounding errors in crop, flip and
    resize must not add a patch."""
    grid, patch = 7, 16
    for image_side in (70, 105, 343):  # a patch covers 10, 15 or 49 pixels of the image
        scale, offset = image_side // grid, 13
        crop = Crop(offset, offset, offset + image_side, offset + image_side)
        for first, last in itertools.combinations(range(grid + 1), 2):
            box = (offset + first * scale, offset, (last - first) * scale, scale)
            seen = visible_box(tuple(map(float, box)), crop)
            for columns, view in ((range(first, last), seen), (range(grid - last, grid - first), flip_box(seen))):
                mask = patch_mask(corners(view, grid * patch), grid * patch, patch).view(grid, grid)
                assert mask.nonzero().tolist() == [[0, column] for column in columns]


@pytest.mark.parametrize("edge", ["left", "top", "right", "bottom"])
@pytest.mark.parametrize(("beyond", "touches"), [(0.5e-6, False), (2e-6, True), (0.01, True)])
def test_a_box_covers_a_patch_if_it_overlaps_a_millionth_of_it(edge, beyond, touches):
    x0, y0, x1, y1 = 16.0, 16.0, 32.0, 32.0  # the patch in row 2, column 2
    step = 8 * beyond
    x0, y0 = x0 - step * (edge == "left"), y0 - step * (edge == "top")
    x1, y1 = x1 + step * (edge == "right"), y1 + step * (edge == "bottom")
    assert patch_mask((x0, y0, x1 - x0, y1 - y0), 64, 8).sum() == 4 + 2 * touches


def test_a_crop_contains_its_whole_element_and_can_reach_every_border():
    rng = np.random.default_rng(0)
    box, width, height = (5.5, 3.2, 10.1, 6.8), 20, 12
    crops = [crop_around(box, width, height, rng) for _ in range(500)]
    assert all(fraction_inside(box, crop) == pytest.approx(1.0) for crop in crops)
    assert {crop.x0 for crop in crops} == set(range(6))
    assert {crop.y0 for crop in crops} == set(range(4))
    assert {crop.x1 for crop in crops} == set(range(16, 21))
    assert {crop.y1 for crop in crops} == set(range(10, 13))


def test_a_crop_can_contain_a_box_at_the_border():
    rng = np.random.default_rng(0)
    for box in ((0.0, 0.0, 20.0, 12.0), (19.9, 11.9, 0.1, 0.1), (0.0, 0.0, 0.1, 0.1)):
        for _ in range(50):
            crop = crop_around(box, 20, 12, rng)
            assert 0 <= crop.x0 < crop.x1 <= 20
            assert 0 <= crop.y0 < crop.y1 <= 12


def test_boxes_follow_crop_and_flip_exactly():
    """Paints the box, crops and flips the image, and compares the box with the painted pixels."""
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


@pytest.mark.parametrize("size", [(1000, 1000), (250, 4000)])
def test_a_box_below_a_thousandth_of_the_crop_is_dropped(size):
    width, height = size
    crop = Crop(0, 0, width, height)
    for share, seen in ((0.0009, False), (0.0011, True)):
        narrow, low = (0.0, 0.0, share * width, height / 2), (0.0, 0.0, width / 2, share * height)
        cut = (width * (1 - share), 0.0, width / 2, float(height))  # most of it is outside
        for box in (narrow, low, cut):
            assert (visible_box(box, crop) is not None) == seen


def boxes(*values) -> list[Element]:
    return [Element(("text",), name=f"elems[{i}]", boxes=(value,)) for i, value in enumerate(values)]


def pixels_inside(box: tuple[float, ...], crop: Crop) -> float:
    """Fraction of a box (in whole pixels) inside the crop, counted pixel by pixel."""
    x, y, w, h = map(int, box)
    pixels = [(column, row) for column in range(x, x + w) for row in range(y, y + h)]
    return sum(crop.x0 <= column < crop.x1 and crop.y0 <= row < crop.y1 for column, row in pixels) / len(pixels)


def test_elements_stay_if_enough_of_their_box_is_visible():
    elements = boxes((0.0, 0.0, 4.0, 4.0), (6.0, 0.0, 4.0, 4.0), (2.0, 0.0, 6.0, 4.0))
    rng = np.random.default_rng(0)
    kept_first, shares = set(), set()
    for _ in range(100):
        crop, visible = visible_elements(elements, (10, 10), rng, crop=True, max_elements=3, min_inside=0.5)
        inside = {element.name: pixels_inside(element.boxes[0], crop) for element in elements}
        names = [element.name for element, _ in visible]
        assert inside[names[0]] == 1
        assert set(names) == {name for name, share in inside.items() if share > 0.5}
        assert all(0 < side <= 1 for _, [box] in visible for side in box)
        kept_first.add(names[0])
        shares |= set(inside.values())
    assert len(kept_first) == 3
    assert {0, 0.5, 1} < shares, "the crops must include cases near the limit"


def test_exactly_half_inside_is_not_enough():
    """Boxes that extend beyond the border of the image, without a crop."""
    half, more = (8.0, 0.0, 4.0, 4.0), (7.0, 0.0, 4.0, 4.0)
    rng = np.random.default_rng(0)
    _, visible = visible_elements(boxes(half, more), (10, 10), rng, crop=False, max_elements=3, min_inside=0.5)
    assert [element.boxes for element, _ in visible] == [(more,)]


@pytest.mark.parametrize("min_inside", [0.0, 0.5, 0.99])
def test_the_element_that_the_crop_was_chosen_for_always_stays(min_inside):
    rng = np.random.default_rng(0)
    for box in ((0.0, 0.0, 4.0, 4.0), (2.3, 1.1, 3.3, 6.2)):
        for _ in range(20):
            crop, visible = visible_elements(
                boxes(box), (10, 10), rng, crop=True, max_elements=3, min_inside=min_inside
            )
            (_, [(_, _, w, h)]) = visible[0]
            assert (w * (crop.x1 - crop.x0), h * (crop.y1 - crop.y0)) == pytest.approx(box[2:])


def test_a_phrase_with_several_boxes_stays_if_all_of_them_are_visible():
    two = Element(("two dogs",), name="elems[0]", boxes=((0.0, 0.0, 2.0, 2.0), (7.0, 6.0, 3.0, 3.0)))
    one = Element(("a dog",), name="elems[1]", boxes=((0.0, 0.0, 2.0, 2.0),))
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(60):
        crop, visible = visible_elements([two, one], (10, 10), rng, crop=True, max_elements=2, min_inside=0.5)
        inside = {element.name: min(pixels_inside(box, crop) for box in element.boxes) for element in (two, one)}
        assert {element.name for element, _ in visible} == {name for name, share in inside.items() if share > 0.5}
        assert all(len(shown) == len(element.boxes) for element, shown in visible)
        if visible[0][0] is two:
            assert (crop.x0, crop.y0) == (0, 0) and (crop.x1, crop.y1) >= (10, 9), "the crop contains both boxes"
        seen.add(len(visible))
    assert seen == {1, 2}


def test_a_phrase_with_a_box_outside_is_broken_and_one_without_a_box_is_valid():
    inside, outside = (0.0, 0.0, 2.0, 2.0), (9.0, 9.0, 5.0, 5.0)
    elements = [
        Element(("x",), name=f"elems[{n}]", boxes=b) for n, b in enumerate([(inside, inside), (inside, outside), ()])
    ]
    record = ImageRecord(location="a:1", image=ImageSource("a:1"), elements=tuple(elements))
    kept, broken = elements_inside(record, 10, 10)
    assert [element.name for element in kept] == ["elems[0]"]
    assert [each.reason for each in broken] == ["box outside image"]


def test_elements_are_limited_and_cropping_can_be_disabled():
    elements = boxes(*[(float(i), 0.0, 1.0, 1.0) for i in range(10)])
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(60):
        crop, found = visible_elements(elements, (10, 10), rng, crop=False, max_elements=4, min_inside=0.5)
        assert crop == Crop(0, 0, 10, 10)
        assert len(found) == 4
        seen |= {element.name for element, _ in found}
    assert len(seen) == 10
    assert visible_elements([], (10, 10), rng, crop=True, max_elements=4, min_inside=0.5)[1] == []
    assert visible_elements(elements, (10, 10), rng, crop=True, max_elements=0, min_inside=0.5)[1] == []


def test_flipping_twice_changes_nothing():
    assert flip_box(flip_box((0.3, 0.4, 0.2, 0.1))) == pytest.approx((0.3, 0.4, 0.2, 0.1))
    assert flip_box((0.25, 0.5, 0.5, 1.0)) == (0.75, 0.5, 0.5, 1.0)
