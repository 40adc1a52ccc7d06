"""Sizes of a model's input: a side, a height and a width, or a number of patches."""

import pytest
from pydantic import ValidationError

from models.config import VisionConfig
from tests.messages import naming
from utils.errors import UserError
from utils.image_size import NativeSize, grid_of, in_words, sides_for, sides_of


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


def test_a_native_size_is_a_budget_of_patches():
    size = NativeSize(max_patches=196, patch_size=16)
    assert sides_for(size, 1000, 1000) == (224, 224)
    assert sides_for(size, 200, 300) == (176, 272)
    assert sides_for((64, 96), 200, 300) == (64, 96)
    assert grid_of(size, 16) == (14, 14)
    assert in_words(size) == "up to 196 patches of 16 px"
    with pytest.raises(UserError, match=naming("images of one height and width", "model.vision.image_size")):
        sides_of(size)


@pytest.mark.parametrize(
    "size", [0, 2.5, "224", [64], [64, 0], {"max_patches": 196}, {"max_patches": 0, "patch_size": 16}]
)
def test_anything_else_is_refused(size):
    with pytest.raises(ValidationError, match=r"\{max_patches: 196, patch_size: 16\}"):
        VisionConfig(image_size=size)


def test_videos_need_a_fixed_size():
    with pytest.raises(ValidationError, match="videos need a fixed image_size"):
        VisionConfig(image_size={"max_patches": 196, "patch_size": 16}, video={"frames": 2})
