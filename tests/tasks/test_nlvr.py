"""Metrics of statements about two images."""

from __future__ import annotations

from typing import Any

import torch

from dataset.media.views import EvaluationView
from tests.tasks.painted import SIZE, measured, task_of


def test_the_left_image_of_a_statement_is_passed_as_the_left_image(overrides, monkeypatch):
    """A replacement for the model answers "true" if both images are equal, as in the one true pair of each sentence, and,
    wrongly, if the left one has a yellow square."""
    task = task_of("nlvr", overrides)
    items = task.held_out.test["test"]
    view = EvaluationView(SIZE, 10**6)
    seen: list[torch.Tensor] = []

    def classify(pixels: torch.Tensor, text: Any) -> torch.Tensor:
        left, right = pixels.chunk(2)
        assert len(left) == len(text.ids) <= 3
        seen.extend(torch.stack(pair) for pair in zip(left, right, strict=True))
        alike = (left == right).flatten(1).all(dim=1)
        yellow = (left[:, 0] > 200) & (left[:, 1] > 200)
        message = alike | yellow.flatten(1).any(dim=1)
        return torch.stack([~message, message], dim=1).float()

    monkeypatch.setattr(task.model, "classify", classify)
    found = measured(task)
    assert len(seen) == len(items)
    for item, pair in zip(items, seen, strict=True):
        assert torch.equal(pair, torch.stack([view(image) for image in item.images]))
    # Images 9 to 11 are green, and 12 to 15 yellow. In these four sets, the false pair is classified as true.
    assert found["accuracy"].value == 1 - 4 / 14
    assert found["consistency"].value == 3 / 7
    assert (found["accuracy"].chance, found["consistency"].chance) == (0.5, 0.25)
