"""Sizes of a model's input: a side, or a height and a width."""

import pytest

from utils.image_size import grid_of, in_words, sides_of


@pytest.mark.parametrize(
    ("size", "sides", "grid", "words"),
    [
        (64, (64, 64), (8, 8), "64 px"),
        ((64, 96), (64, 96), (8, 12), "64 x 96 px"),
        ((32, 32), (32, 32), (4, 4), "32 px"),
    ],
)
def test_a_single_side_means_a_square(size, sides, grid, words):
    assert (sides_of(size), grid_of(size, 8), in_words(size)) == (sides, grid, words)
