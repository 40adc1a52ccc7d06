"""Images that may look alike are found by the hashes of their segments."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from dataset import look_alikes
from dataset.look_alikes import MAX_BITS, Look


def looks(hashes: np.ndarray, segments: list[int]) -> list[Look]:
    """Images with the given numbers of segments."""
    ends = np.cumsum(segments)
    return [Look(part, Image.new("L", (8, 8))) for part in np.split(hashes, ends[:-1])]


@pytest.mark.parametrize("chunk", [1, 2, 2048])
def test_images_with_a_similar_segment_are_candidates_once_for_any_comparison(monkeypatch, chunk):
    monkeypatch.setattr(look_alikes, "CHUNK", chunk)
    hashes = np.random.default_rng(0).choice([-1.0, 1.0], (6, 64)).astype(np.float32)
    near, far = hashes.copy(), hashes.copy()
    near[:, :MAX_BITS] *= -1
    far[:, : MAX_BITS + 1] *= -1
    ours = looks(hashes, [1, 3, 1, 1])
    assert list(look_alikes._candidates(ours, looks(near, [1, 3, 1, 1]))) == [(n, n) for n in range(4)]
    assert list(look_alikes._candidates(ours, looks(far, [1, 3, 1, 1]))) == []
    assert list(look_alikes._candidates(ours, [])) == []
