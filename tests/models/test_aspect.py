"""Inputs that are not square: positions of patches, boxes and regions, and the resizing of position bias tables."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from dataset.config import AugmentConfig
from dataset.media.augment import draw_crop, evaluation_view, random_resized_crop
from dataset.records.boxes import patch_mask
from models.config import VisionConfig
from models.core.backbones.tables import resize_bias_table
from models.core.vision import VisionEncoder
from tests.messages import naming
from utils.errors import UserError

WIDE = (32, 64)


@pytest.fixture(scope="module")
def encoder() -> VisionEncoder:
    torch.manual_seed(0)
    sizes = {"width": 32, "depth": 1, "heads": 2, "patch_size": 8, "drop_path": 0.0, "positions": "sincos"}
    return VisionEncoder(VisionConfig(image_size=WIDE, **sizes)).eval()


def test_patches_are_row_major_over_the_wider_grid(encoder):
    """A change of pixels first affects the embedding of the patch that contains them."""
    assert encoder.grid == (4, 8)
    pixels = torch.zeros(1, 3, *WIDE)
    changed = pixels.clone()
    changed[:, :, 8:16, 40:48] = 1  # row 1, column 5
    difference = (encoder.backbone.patch_embed(changed) - encoder.backbone.patch_embed(pixels)).abs().sum(dim=2)[0]
    assert difference.nonzero().flatten().tolist() == [1 * 8 + 5]
    assert patch_mask((40, 8, 8, 8), WIDE, 8).nonzero().flatten().tolist() == [1 * 8 + 5]
    assert encoder.patches(pixels).shape == (1, 32, 32)


def test_a_whole_box_covers_all_patches_and_a_right_half_the_right_columns():
    assert patch_mask((0, 0, 64, 32), WIDE, 8).all()
    half = patch_mask((32, 0, 32, 32), WIDE, 8).view(4, 8)
    assert half[:, 4:].all() and not half[:, :4].any()


def test_an_image_with_the_same_aspect_ratio_is_scaled_without_distortion():
    ramp = torch.arange(128, dtype=torch.uint8).repeat(3, 64, 1)
    view = evaluation_view(ramp, WIDE)
    assert view.shape == (3, *WIDE)
    assert (view[:, :, 20:40].float() - ramp[:, ::2, ::2][:, :, 20:40].float()).abs().max() <= 1


def test_the_ratio_of_a_crop_is_relative_to_the_input():
    config = AugmentConfig(scale=(0.3, 0.6), ratio=(1.0, 1.0))
    for seed in range(20):
        _, _, height, width = draw_crop(600, 900, config, np.random.default_rng(seed), WIDE[1] / WIDE[0])
        assert width / height == pytest.approx(2, rel=0.02)
    whole = AugmentConfig(scale=(1, 1), ratio=(1, 1))
    assert draw_crop(50, 100, whole, np.random.default_rng(0), 2.0) == (0, 0, 50, 100)
    image = torch.zeros(3, 50, 100, dtype=torch.uint8)
    assert random_resized_crop(image, WIDE, config, np.random.default_rng(0)).shape == (3, *WIDE)


def plane(rows: int, columns: int) -> Tensor:
    """Biases of one head that grow linearly with both offsets, and the three biases of [CLS]."""
    y, x = torch.meshgrid(torch.arange(1 - rows, rows), torch.arange(1 - columns, columns), indexing="ij")
    return torch.cat([(10.0 * y + x).reshape(-1, 1), torch.tensor([[7.0], [8.0], [9.0]])])


def test_a_table_of_a_square_grid_is_resized_along_each_side_separately():
    """When reduced to fewer patches, a linear table is sampled at its offsets, so it stays linear around the middle."""
    square = plane(8, 8)
    resized = resize_bias_table(square, 4, 8)
    assert len(resized) == 7 * 15 + 3
    assert torch.equal(resized[-3:], square[-3:])
    both = resize_bias_table(square, 4, 4)[:-3].view(7, 7), resize_bias_table(square, 8, 8)[:-3].view(15, 15)
    torch.testing.assert_close(resized[:-3].view(7, 15)[:, 7], both[0][:, 3])
    torch.testing.assert_close(resized[:-3].view(7, 15)[3], both[1][7])


def test_a_side_that_patches_do_not_divide_is_reported():
    with pytest.raises(UserError, match=naming("image_size 60", "patch_size 8", "56", "64")):
        VisionEncoder(VisionConfig(image_size=(32, 60), patch_size=8, width=32, depth=1, heads=2))
