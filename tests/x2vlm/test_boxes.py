"""Boxes as relative centre and size, as pixels, and as patches, for images that are not square."""

from __future__ import annotations

import pytest
import torch

from x2vlm.boxes import in_pixels, region_masks
from x2vlm.regions import matching_regions
from x2vlm.runtime import _boxes_above

HEIGHT, WIDTH, PATCH = 24, 56, 8


def test_a_region_consists_of_the_patches_that_its_box_touches():
    """The boxes are painted with two points per pixel, and a patch is touched if any of its points is painted."""
    generator = torch.Generator().manual_seed(0)
    boxes, painted = [], torch.zeros(60, 2 * HEIGHT, 2 * WIDTH, dtype=torch.bool)
    for canvas in painted:
        (top, bottom), (left, right) = (
            sorted(torch.randperm(2 * side + 1, generator=generator)[:2].tolist()) for side in (HEIGHT, WIDTH)
        )
        canvas[top:bottom, left:right] = True
        centre = [(left + right) / 4 / WIDTH, (top + bottom) / 4 / HEIGHT]
        boxes.append([*centre, (right - left) / 2 / WIDTH, (bottom - top) / 2 / HEIGHT])
    patches = painted.unfold(1, 2 * PATCH, 2 * PATCH).unfold(2, 2 * PATCH, 2 * PATCH)
    expected = patches.flatten(3).any(dim=3).flatten(1)
    assert torch.equal(region_masks(torch.tensor(boxes), (HEIGHT, WIDTH), PATCH), expected)


@pytest.mark.parametrize(
    ("relative", "pixels"),
    [
        ((0.5, 0.5, 1.0, 1.0), (0, 0, 200, 100)),
        ((0.25, 0.7, 0.1, 0.2), (40, 60, 20, 20)),
        ((0.9, 0.1, 0.4, 0.6), (140, 0, 60, 40)),  # clipped at the right and at the top
    ],
)
def test_a_box_in_pixels_is_scaled_by_width_and_height_and_clipped(relative, pixels):
    box = in_pixels("a star", relative, 0.5, (200, 100))
    assert (box.x, box.y, box.width, box.height) == pytest.approx(pixels)
    assert (box.phrase, box.score) == ("a star", 0.5)


def test_a_probability_of_exactly_the_threshold_is_enough():
    boxes, scores = torch.eye(4)[:3], torch.tensor([0.25, 0.75, 0.5])
    assert _boxes_above(boxes, scores, 0.5) == [(boxes[1].tolist(), 0.75), (boxes[2].tolist(), 0.5)]
    [found] = matching_regions(lambda regions, _: torch.full((len(regions),), 0.5), (2, 2), 1, threshold=0.5)
    assert {score for _, score in found} == {0.5}
