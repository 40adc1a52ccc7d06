"""Metrics of boxes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from dataset.media.views import EvaluationView
from tests.tasks.painted import SIZE, measured, task_of


def true_box(pixels: torch.Tensor) -> list[float]:
    """The square in an image, as (cx, cy, w, h): the pixels that are not grey."""
    there = (pixels.float() - 128).abs().amax(dim=0) > 40
    rows, columns = there.any(dim=1).nonzero().flatten(), there.any(dim=0).nonzero().flatten()
    x0, x1, y0, y1 = (int(edge) / SIZE for edge in (columns[0], columns[-1] + 1, rows[0], rows[-1] + 1))
    return [(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0]


@pytest.mark.parametrize(("share", "measure"), [(1.0, 1.0), (0.55, 1.0), (0.45, 0.0)])
def test_boxes_are_compared_with_the_boxes_of_their_own_images(overrides, monkeypatch, share, measure):
    """A replacement for the model finds the painted squares, or the left part of them; the remaining share of the width is the
    IoU."""
    task = task_of("grounding", overrides)

    def locate(pixels: torch.Tensor, text: Any) -> torch.Tensor:
        assert len(pixels) == len(text.ids) <= 3
        boxes = torch.tensor([true_box(each) for each in pixels])
        boxes[:, 0] -= boxes[:, 2] * (1 - share) / 2
        boxes[:, 2] *= share
        return boxes

    monkeypatch.setattr(task.model, "locate", locate)
    found = measured(task)
    for name in ("IoU >= 0.5", "attribute: IoU >= 0.5", "place: IoU >= 0.5", "IoU >= 0.5 (published script)"):
        assert found[name].value == measure, name


def test_the_chance_level_of_grounding_uses_the_mean_box(overrides):
    task = task_of("grounding", overrides)
    items = task.held_out.test["test"]
    boxes = np.array([true_box(EvaluationView(SIZE, 10**6)(item.image)) for item in items])
    corners = np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], axis=1)
    mean = boxes.mean(axis=0)
    middle = np.concatenate([mean[:2] - mean[2:] / 2, mean[:2] + mean[2:] / 2])
    hits = []
    for box in corners:
        overlap = np.clip(np.minimum(box[2:], middle[2:]) - np.maximum(box[:2], middle[:2]), 0, None).prod()
        union = (box[2:] - box[:2]).prod() + (middle[2:] - middle[:2]).prod() - overlap
        hits.append(overlap / union >= 0.5)
    assert measured(task)["IoU >= 0.5"].chance == pytest.approx(np.mean(hits))
