"""What is measured of statements about two pictures."""

from __future__ import annotations

from typing import Any

import torch

from dataset.media.views import EvaluationView
from tests.tasks.painted import SIZE, measured, task_of


def test_the_left_picture_of_a_statement_is_classified_as_the_left_one(overrides, monkeypatch):
    """A stand-in for the model says "true" where both pictures are alike, as in the one true pair of each sentence, and,
    wrongly, where the left one has a yellow square."""
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
        said = alike | yellow.flatten(1).any(dim=1)
        return torch.stack([~said, said], dim=1).float()

    monkeypatch.setattr(task.model, "classify", classify)
    found = measured(task)
    assert len(seen) == len(items)
    for item, pair in zip(items, seen, strict=True):
        assert torch.equal(pair, torch.stack([view(image) for image in item.images]))
    # ImageFiles 9 … 11 are green, 12 … 15 yellow: of these four sets the false pair is taken for true.
    assert found["accuracy"].value == 1 - 4 / 14
    assert found["consistency"].value == 3 / 7
    assert (found["accuracy"].chance, found["consistency"].chance) == (0.5, 0.25)
