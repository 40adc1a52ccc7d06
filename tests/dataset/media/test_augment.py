"""Decoding and augmentation. The golden results are the released operations (OpenCV) on one image at level 7."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2.functional import resize as torchvision_resize

from batches.images import stack_views
from dataset.config import AugmentConfig
from dataset.media.augment import (
    COLOUR_OPS,
    GEOMETRIC_OPS,
    RandAugment,
    draw_crop,
    evaluation_view,
    hflip,
    random_resized_crop,
    resize,
    shrink,
)

GOLDEN = dict(np.load(Path(__file__).parents[2] / "golden" / "augment_ops.npz"))


def picture() -> Image.Image:
    coarse = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((64, 48), Image.Resampling.NEAREST)


def as_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


@pytest.mark.parametrize("case", sorted(set(GOLDEN) - {"image"}))
def test_operations_equal_the_released_ones(case):
    name, _, sign = case.partition("_")
    image = torch.from_numpy(GOLDEN["image"]).permute(2, 0, 1)
    out = RandAugment(2, 7).apply(name, image, -1 if sign == "neg" else 1).permute(1, 2, 0).numpy().astype(int)
    expected = GOLDEN[case].astype(int)
    if name == "Sharpness":
        # Deviation: the released operation wraps around outside 0 to 255, and ours clips. Where it wraps, ours is 0 or 255.
        wrapped = abs(out - expected) > 1
        assert wrapped.mean() < 0.003
        assert set(out[wrapped]) <= {0, 255}
        out = np.where(wrapped, expected, out)
    assert np.array_equal(out, expected)


@pytest.mark.parametrize("name", ["ShearX", "ShearY", "Rotate"])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_wide_image_is_translated_as_by_pillow(name, sign):
    """Pillow interpolates at exact positions; OpenCV and our code interpolate at steps of 1/32 pixel. The difference is small on
    a smooth image."""
    coarse = np.random.default_rng(0).integers(0, 256, (4, 7, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((221, 117), Image.Resampling.BICUBIC)
    a, b, d, e = 1.0, 0.0, 0.0, 1.0
    if name == "Rotate":
        angle = sign * np.radians(21)
        a, b, d, e = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
    elif name == "ShearX":
        b = -sign * 0.21
    else:
        d = -sign * 0.21
    # The first pixel is at (0, 0) in our code and at (0.5, 0.5) in Pillow. A rotation is about the centre.
    x, y = (221 / 2, 117 / 2) if name == "Rotate" else (0, 0)
    shift_x, shift_y = x - a * x - b * y, y - d * x - e * y
    affine = (a, b, shift_x + 0.5 - (a + b) / 2, d, e, shift_y + 0.5 - (d + e) / 2)
    grey = (128, 128, 128)
    expected = image.transform(image.size, Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR, fillcolor=grey)
    out = RandAugment(2, 7).apply(name, as_tensor(image), sign)
    known = (
        RandAugment(2, 7).apply(name, torch.zeros_like(out), sign)[0] == 0
    )  # not at the border, which Pillow does not blend
    assert known.float().mean() > 0.4
    difference = (out.int() - as_tensor(expected).int()).abs()[:, known]
    assert difference.max() <= 3


def test_colour_operations_keep_the_layout_and_all_ten_are_drawn():
    image = torch.from_numpy(GOLDEN["image"]).permute(2, 0, 1)
    assert RandAugment(2, 7, colour_only=True).choices == list(COLOUR_OPS)
    assert RandAugment(2, 7).choices == [*COLOUR_OPS, *GEOMETRIC_OPS]
    rng = np.random.default_rng(0)
    drawn = []
    augment = RandAugment(2, 7)
    augment.apply = lambda name, image, sign=1: drawn.append((name, sign)) or image  # type: ignore[method-assign]
    for _ in range(1000):
        augment(image, rng)
    assert 900 < len(drawn) < 1100, "each of the two is applied with probability 0.5"
    assert {name for name, _ in drawn} == {*COLOUR_OPS, *GEOMETRIC_OPS}
    assert {sign for _, sign in drawn} == {1, -1}


def test_zero_operations_change_nothing_and_the_input_is_never_modified():
    image = torch.from_numpy(GOLDEN["image"]).permute(2, 0, 1).contiguous()
    before = image.clone()
    assert RandAugment(0, 7)(image, np.random.default_rng(0)) is image
    for seed in range(40):
        out = RandAugment(3, 7)(image, np.random.default_rng(seed))
        assert (out.shape, out.dtype) == (image.shape, torch.uint8)
        assert torch.equal(image, before)


def test_crops_have_the_requested_area_and_ratio():
    # Each pixel holds its own position, so a crop shows where it was taken.
    rows, columns = torch.meshgrid(torch.arange(100), torch.arange(160), indexing="ij")
    image = torch.stack([rows, columns, rows]).to(torch.uint8)
    config = AugmentConfig(scale=(0.2, 0.6), ratio=(0.8, 1.25))
    corners = []
    for seed in range(60):
        crop = random_resized_crop(image, 16, config, np.random.default_rng(seed)).float()
        height = (crop[0, -1, 8] - crop[0, 0, 8]) * 16 / 15
        width = (crop[1, 8, -1] - crop[1, 8, 0]) * 16 / 15
        assert 0.2 * 0.85 < height * width / 16000 < 0.6 * 1.15
        assert 0.8 * 0.85 < width / height < 1.25 * 1.15
        corners.append((float(crop[0, 0, 8]), float(crop[1, 8, 0])))
    assert all(min(edge) < 8 and max(edge) > 25 for edge in zip(*corners, strict=True)), (
        "crops are spread over the whole image"
    )


def test_crops_are_wide_as_often_as_tall_and_of_any_area():
    """Aspect ratios are log-uniform: 2:1 is as frequent as 1:2. None of these crops has to be drawn a second time."""
    config = AugmentConfig(scale=(0.05, 0.15), ratio=(1 / 4, 4))
    rng = np.random.default_rng(0)
    sizes = np.array([draw_crop(400, 400, config, rng)[2:] for _ in range(2000)])
    height, width = sizes.T
    ratio, area = width / height, height * width / 400**2
    # The standard error is at most 0.011.
    for low, high, share in ((0, 1 / 2, 0.25), (1 / 2, 1, 0.25), (1, 2, 0.25), (2, 9, 0.25)):
        assert np.mean((ratio > low) & (ratio <= high)) == pytest.approx(share, abs=0.045)
    for quarter in (0.075, 0.1, 0.125):
        assert np.mean(area < quarter) == pytest.approx((quarter - 0.05) / 0.1, abs=0.045)


@pytest.mark.parametrize(("size", "expected"), [((100, 300), (0, 83, 100, 133)), ((300, 90), (90, 0, 120, 90))])
def test_if_no_crop_fits_the_largest_central_one_is_used(size, expected):
    """No random crop fits, because the crop must have the whole area, but an aspect ratio that the image does not have."""
    config = AugmentConfig(scale=(1, 1), ratio=(3 / 4, 4 / 3))
    assert draw_crop(*size, config, np.random.default_rng(0)) == expected


def test_the_whole_image_can_be_kept():
    image = as_tensor(picture())
    config = AugmentConfig(scale=(1, 1), ratio=(64 / 48, 64 / 48))
    assert torch.equal(random_resized_crop(image, 32, config, np.random.default_rng(0)), evaluation_view(image, 32))


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (2, 7)])
def test_images_with_extreme_ratios_are_cropped(size):
    image = torch.full((3, *size), 9, dtype=torch.uint8)
    for seed in range(10):
        out = random_resized_crop(image, 16, AugmentConfig(), np.random.default_rng(seed))
        assert out.shape == (3, 16, 16)
        assert (out == 9).all()


def test_the_evaluation_view_equals_pillows_bicubic_resize():
    expected = as_tensor(picture().resize((32, 32), Image.Resampling.BICUBIC)).int()
    view = evaluation_view(as_tensor(picture()), 32)
    assert (view.int() - expected).abs().max() <= 1
    assert view.is_contiguous()


def test_a_crop_is_resized_as_by_torchvision():
    image = as_tensor(picture())
    for part in (image, image.contiguous(), image[:, 5:40, 3:60], image[:, :1, :1]):
        expected = torchvision_resize(part, [32, 32], interpolation=InterpolationMode.BICUBIC, antialias=True)
        assert torch.equal(resize(part, 32), expected)


@pytest.mark.parametrize(
    ("size", "expected"), [((48, 64), (32, 43)), ((64, 48), (43, 32)), ((32, 90), (32, 90)), ((9, 7), (9, 7))]
)
def test_large_images_shrink_with_their_aspect_ratio_and_small_ones_stay(size, expected):
    image = as_tensor(picture())
    image = torchvision_resize(image, list(size), interpolation=InterpolationMode.BICUBIC, antialias=True)
    shrunk = shrink(image, 32)
    assert tuple(shrunk.shape[1:]) == expected
    again = torchvision_resize(image, list(expected), interpolation=InterpolationMode.BICUBIC, antialias=True)
    assert torch.equal(shrunk, again)


def test_views_are_stacked_in_order():
    views = [torch.full((3, 2, 2), number, dtype=torch.uint8) for number in range(3)]
    stacked = stack_views([*views, views[0].flip(-1)], 2)
    assert stacked.is_contiguous()
    assert stacked[:, 0, 0, 0].tolist() == [0, 1, 2, 0]


def test_a_flip_mirrors_left_and_right():
    image = as_tensor(picture())
    assert torch.equal(hflip(image)[:, :, 0], image[:, :, -1])
    assert torch.equal(hflip(hflip(image)), image)


def test_values_out_of_range_are_rejected():
    for wrong in ({"scale": (0, 1)}, {"scale": (0.5, 0.2)}, {"scale": (0.5, 1.2)}, {"ratio": (2, 1)}, {"flip": 1.5}):
        with pytest.raises(ValidationError):
            AugmentConfig(**wrong)
    for wrong in ({"rand_augment_ops": -1}, {"rand_augment_magnitude": 11}):
        with pytest.raises(ValidationError):
            AugmentConfig(**wrong)
