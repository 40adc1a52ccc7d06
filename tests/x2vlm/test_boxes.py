"""Boxes as relative centre and size, as pixels, and as patches, for images that are not square."""

from __future__ import annotations

import pytest
import torch
from torchvision.ops import box_convert, box_iou

from x2vlm.boxes import in_pixels, region_masks
from x2vlm.regions import MAX_IOU, matching_boxes
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
    assert torch.equal(region_masks(torch.tensor(boxes), [(3, 7)] * 60, 21), expected)
    padded = region_masks(torch.tensor(boxes), [(3, 7)] * 60, 25)
    assert torch.equal(padded[:, :21], expected) and not padded[:, 21:].any()


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
    best = [([0.25, 0.25, 0.5, 0.5], 0.5)]
    [found] = matching_boxes(
        lambda regions, _: (torch.full((len(regions),), 0.5), regions), [(2, 2)], best, threshold=0.5
    )
    assert {score for _, score in found} == {0.5}


@pytest.mark.parametrize("seed", range(20))
def test_overlapping_boxes_are_suppressed_and_the_best_box_replaces_its_estimates(seed):
    """The boxes of regions are random, and may extend beyond the image."""
    generator = torch.Generator().manual_seed(seed)
    best = [([0.4, 0.6, 0.3, 0.2], 0.1), ([0.2, 0.2, 0.2, 0.2], 0.1)]
    seen: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def refine(regions, phrases):
        scores = torch.rand(len(regions), generator=generator)
        boxes = torch.rand(len(regions), 4, generator=generator) * torch.tensor([1, 1, 0.6, 0.6])
        before = seen.get(int(phrases[0]), (torch.empty(0), torch.empty(0, 4)))
        seen[int(phrases[0])] = (torch.cat([before[0], scores]), torch.cat([before[1], boxes]))
        return scores, boxes

    for phrase, found in enumerate(matching_boxes(refine, [(6, 6), (6, 6)], best, threshold=0.3)):
        scores, boxes = seen[phrase]
        corners, found_corners, best_corners = (
            box_convert(torch.as_tensor(each), "cxcywh", "xyxy").clamp(0, 1)
            for each in (boxes, [box for box, _ in found], [best[phrase][0]])
        )
        assert box_iou(found_corners, found_corners).fill_diagonal_(0).max() <= MAX_IOU + 1e-6
        assert [score for _, score in found] == sorted((score for _, score in found), reverse=True)
        assert found[0][1] == scores.max()
        is_estimate = box_iou(best_corners, corners)[0] > MAX_IOU
        probability = max([0.1, *scores[is_estimate].tolist()])
        at = (found_corners - best_corners).abs().amax(dim=1).lt(1e-6).nonzero().flatten().tolist()
        assert [found[index][1] for index in at] == ([pytest.approx(probability)] if probability >= 0.3 else [])
        is_kept = box_iou(corners, found_corners).amax(dim=1) > MAX_IOU
        assert bool((is_kept | (scores < 0.3)).all()), "a box was dropped although it overlaps with no result"
