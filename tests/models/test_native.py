"""Images that keep their aspect ratio: the grid of an image, and encoders that take images of different shapes together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import isqrt, log, prod

import pytest
import torch
from safetensors.torch import save_file
from timm.models.beit import gen_relative_position_index
from torch import Tensor, nn
from torch.export import Dim

from batches.images import Grid, NativeImages
from models.checkpoints import initialise
from models.config import InitConfig, VisionConfig
from models.core.backbones.native import offset_rows
from models.core.backbones.timm_backbone import BIAS_TABLE, POSITIONS
from models.core.vision import VisionEncoder
from tests.encoders.vision import ROWS, model_of
from tests.messages import naming
from utils.errors import UserError
from utils.image_size import NativeSize, grid_of, sides_for
from utils.weight_file import identity

BACKBONES = {
    "dinov2": {"backbone": "vit_small_patch14_dinov2", "patch_size": 14},
    "dinov2 with registers": {"backbone": "vit_small_patch14_reg4_dinov2", "patch_size": 14},
    "sincos and a convolutional stem": {
        "backbone": "vit_small_patch16_224",
        "patch_size": 4,
        "stem": "convolutions",
        "positions": "sincos",
        "patch_positions": True,
    },
    "dinov3": {"backbone": "vit_small_patch16_dinov3", "patch_size": 16},
    "eva": {"backbone": "eva02_tiny_patch14_224", "patch_size": 14},
    "beit": {"backbone": "beitv2_base_patch16_224", "patch_size": 4, "positions": "sincos"},
    "naflex": {"backbone": "naflexvit_base_patch16_gap", "patch_size": 16},
}
GRIDS: tuple[Grid, ...] = ((4, 5), (4, 4), (2, 9), (5, 4), (4, 5), (1, 20))


def encoder(name: str, image_size: NativeSize | tuple[int, int] | None = None) -> VisionEncoder:
    """A small encoder in float64 with large random weights; by default, for images of up to 20 patches."""
    settings = BACKBONES[name]
    size = image_size or NativeSize(max_patches=20, patch_size=settings["patch_size"])
    sizes = {"width": 32, "depth": 2, "heads": 2, "drop_path": 0.0}
    built = VisionEncoder(VisionConfig(image_size=size, **sizes, **settings)).double().eval()
    torch.manual_seed(0)
    for parameter in built.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return built


def images_of(grids: tuple[Grid, ...], side: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randint(0, 256, (3, rows * side, columns * side), dtype=torch.uint8, generator=generator)
        for rows, columns in grids
    ]


def gradients(model: VisionEncoder, run: Callable[[], Tensor]) -> dict[str, Tensor]:
    model.zero_grad()
    run().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("max_patches", [1, 7, 144, 196])
def test_a_grid_is_the_largest_whose_sides_are_the_rounded_sides_of_the_image(max_patches):
    size = NativeSize(max_patches=max_patches, patch_size=14)
    for height, width in ((100, 100), (3, 4), (480, 640), (1080, 1920), (1920, 1080), (210, 297), (1, 7), (97, 31)):
        rows, columns = size.grid(height, width)
        assert rows * columns <= max_patches
        if max(height, width) > max_patches * min(height, width):
            continue
        # There is a scale at which both sides round to the grid, if a side of less than half a patch counts as one patch.
        low = max((rows - 0.5) / height if rows > 1 else 0, (columns - 0.5) / width if columns > 1 else 0)
        high = min((rows + 0.5) / height, (columns + 0.5) / width)
        assert low <= high
        # At the next scale with another grid, there are too many patches.
        scale = high * (1 + 1e-9)
        assert round(max(1, scale * height)) * round(max(1, scale * width)) > max_patches


def test_a_square_has_as_many_rows_as_columns_with_every_budget():
    for max_patches in range(1, 1025):
        size = NativeSize(max_patches=max_patches, patch_size=14)
        assert size.grid(480, 480) == (isqrt(max_patches), isqrt(max_patches)) == grid_of(size, 14)


def test_images_that_are_too_long_are_compressed():
    size = NativeSize(max_patches=10, patch_size=14)
    assert size.grid(1, 1000) == (1, 10)
    assert size.grid(1000, 1) == (10, 1)
    assert sides_for(size, 1, 1000) == (14, 140)


def test_the_largest_error_of_the_aspect_ratio():
    """The numbers in docs/finetuning.md: for images of up to 4:1, with 196 patches."""
    size, worst, least = NativeSize(max_patches=196, patch_size=16), 0.0, 1.0
    for step in range(-200, 201):
        height, width = 10_000, round(10_000 * 4 ** (step / 200))
        rows, columns = size.grid(height, width)
        worst = max(worst, abs(log(columns / rows) - log(width / height)))
        least = min(least, rows * columns / 196)
    assert worst < log(1.1)
    assert least > 0.89


def test_patches_are_cut_and_put_together_again():
    size = NativeSize(max_patches=20, patch_size=4)
    images = images_of(GRIDS, 4)
    batch = NativeImages.of(images, size)
    assert batch.grids == GRIDS
    assert batch.patches.shape == (len(GRIDS), 20, 3, 4, 4)
    for image, found in zip(images, batch.each_raster(), strict=True):
        assert torch.equal(found[0], image)
    assert torch.equal(batch.patches[0, 7], images[0][:, 4:8, 8:12])  # the eighth patch of four rows of five
    assert batch.mask().sum(dim=1).tolist() == [rows * columns for rows, columns in GRIDS]
    assert NativeImages.cat([batch, batch.select([2])]).grids == (*GRIDS, (2, 9))


@pytest.mark.parametrize("name", BACKBONES)
def test_images_give_the_same_states_and_gradients_together_and_alone(name):
    """Alone, nothing is padded."""
    model = encoder(name)
    size, images = model.config.image_size, images_of(GRIDS, model.patch_size)
    assert isinstance(size, NativeSize)
    together = model(NativeImages.of(images, size))
    alone = [model(image.unsqueeze(0)) for image in images]
    for index, single in enumerate(alone):
        count = single.patches.shape[1]
        assert count == prod(GRIDS[index])
        torch.testing.assert_close(together.patches[index, :count], single.patches[0])
        assert not together.patches[index, count:].any()
        torch.testing.assert_close(together.mean[index], single.mean[0])
    first = gradients(model, lambda: model(NativeImages.of(images, size)).mean.square().sum())
    second = gradients(model, lambda: sum(model(image.unsqueeze(0)).mean.square().sum() for image in images))
    assert first.keys() == second.keys() and len(first) > 20
    # NaFlexVit resizes its positions in float32.
    tolerance = 1e-5 if name == "naflex" else 1e-9
    for parameter, gradient in first.items():
        torch.testing.assert_close(gradient, second[parameter], rtol=tolerance, atol=tolerance, msg=parameter)


@pytest.mark.parametrize("name", BACKBONES)
def test_a_square_image_gives_the_states_of_a_model_for_squares(name):
    model = encoder(name)
    side = 4 * model.patch_size
    fixed = encoder(name, (side, side))
    fixed.load_state_dict(model.state_dict())
    (image,) = images_of(((4, 4),), model.patch_size)
    together = model(NativeImages.of([image, *images_of(GRIDS, model.patch_size)], model.config.image_size))
    torch.testing.assert_close(together.patches[:1, :16], fixed(image.unsqueeze(0)).patches, rtol=1e-6, atol=1e-6)


def test_rotary_positions_are_those_of_a_model_for_this_shape():
    model, fixed = encoder("dinov3"), encoder("dinov3", (2 * 16, 9 * 16))
    fixed.load_state_dict(model.state_dict())
    (image,) = images_of(((2, 9),), 16)
    torch.testing.assert_close(model(image.unsqueeze(0)).patches, fixed(image.unsqueeze(0)).patches)


def test_beit_reads_the_biases_of_a_pair_of_patches_by_their_offset():
    assert torch.equal(offset_rows((4, 4), 4, torch.device("cpu")), gen_relative_position_index((4, 4)))
    square, wide = (offset_rows(grid, 6, torch.device("cpu")) for grid in ((4, 4), (2, 6)))
    # Row 1, column 2 seen from row 0, column 1, in both grids; [CLS] is the first token.
    assert square[1 + 1, 1 + 4 + 2] == wide[1 + 1, 1 + 6 + 2]
    assert square[0, 5] == wide[0, 5] and square[5, 0] == wide[5, 0] and square[0, 0] == wide[0, 0]


def test_beit_uses_the_last_offset_of_its_table_beyond_it():
    rows = offset_rows((1, 9), 4, torch.device("cpu"))
    assert rows[1, 1 + 3] == rows[1, 1 + 8]  # three and eight columns to the right
    assert rows[1, 1 + 2] != rows[1, 1 + 3]


def test_gradient_checkpointing_changes_nothing():
    model = encoder("beit")
    images = NativeImages.of(images_of(GRIDS, 4), model.config.image_size)
    plain = gradients(model, lambda: model(images).mean.square().sum())
    model.set_gradient_checkpointing(True)
    for name, gradient in gradients(model, lambda: model(images).mean.square().sum()).items():
        torch.testing.assert_close(gradient, plain[name], msg=name)


@pytest.mark.parametrize("backbone", ["convnext_atto", "deit_tiny_distilled_patch16_224"])
def test_a_backbone_for_images_of_one_size_is_refused(backbone):
    size = NativeSize(max_patches=20, patch_size=32 if backbone == "convnext_atto" else 16)
    with pytest.raises(UserError, match=naming("model.vision.image_size", "one height and width", "DINOv2")):
        VisionEncoder(VisionConfig(backbone=backbone, image_size=size))


def test_another_patch_size_than_that_of_the_backbone_is_refused():
    with pytest.raises(UserError, match=naming("image_size.patch_size is 16", "14", "set it to 14")):
        VisionEncoder(
            VisionConfig(backbone="vit_small_patch14_dinov2", image_size=NativeSize(max_patches=20, patch_size=16))
        )


def test_a_model_of_transformers_is_refused(tmp_path):
    row = next(row for row in ROWS if row.settings is not None and row.title == "DINOv2")
    with pytest.raises(UserError, match=naming("model.vision.image_size", "one height and width", "timm's name")):
        VisionEncoder(row.config(tmp_path, image_size=NativeSize(max_patches=20, patch_size=14)))


@pytest.mark.parametrize("name", ["beit", "dinov2", "sincos and a convolutional stem"])
def test_the_cache_of_frozen_blocks_changes_nothing(name, tmp_path):
    model = encoder(name).float().train()
    model.freeze_blocks(1)
    size, images = model.config.image_size, images_of(GRIDS, model.patch_size)
    batch = NativeImages.of(images, size)
    expected = gradients(model, lambda: model(batch).mean.square().sum())
    model.keep_features(tmp_path, 10**8)
    for _ in range(2):  # computed first, then read from the cache
        torch.testing.assert_close(gradients(model, lambda: model(batch).mean.square().sum()), expected)
    # Two images with the same pixels in another grid have different states.
    first, second = (model(replace(batch.select([0]), grids=(grid,))).mean for grid in ((4, 5), (5, 4)))
    assert not torch.allclose(first, second)


@pytest.mark.slow
@pytest.mark.parametrize("name", BACKBONES)
def test_an_exported_encoder_takes_images_of_any_shape(name):
    class Patches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = encoder(name).float()

        def forward(self, pixels: Tensor) -> Tensor:
            return self.encoder(pixels).patches

    model = Patches().eval()
    side = model.encoder.patch_size
    rows, columns = (Dim(axis, min=2, max=20) for axis in ("rows", "columns"))
    axes = {2: side * rows, 3: side * columns}
    example = torch.zeros(1, 3, 2 * side, 3 * side, dtype=torch.uint8)
    with torch.no_grad():
        exported = torch.export.export(model, (example,), dynamic_shapes=(axes,), strict=False).module()
        for image in images_of(((4, 5), (2, 10), (5, 2)), side):
            torch.testing.assert_close(exported(image[None]), model(image[None]), rtol=1e-4, atol=1e-4)


def test_models_with_other_budgets_have_another_identity():
    """With 16 and 20 patches, the squares and all tensors are the same."""
    first, second = (encoder("beit", NativeSize(max_patches=count, patch_size=4)) for count in (16, 20))
    assert identity(first) != identity(second)


@pytest.mark.parametrize("name", BACKBONES)
def test_weights_for_squares_are_loaded(name, tmp_path):
    """Tables of a 6 x 6 grid are resized to the square of the budget, and rotary and other parameters stay."""
    side = 6 * BACKBONES[name]["patch_size"]
    source = encoder(name, (side, side)).float()
    save_file(
        {key: value.clone() for key, value in source.backbone.state_dict().items()}, tmp_path / "vision.safetensors"
    )
    settings = {**BACKBONES[name], "width": 32, "depth": 2, "heads": 2, "drop_path": 0.0}
    model = model_of(VisionConfig(image_size=NativeSize(max_patches=20, patch_size=settings["patch_size"]), **settings))
    [report] = initialise(model, InitConfig(vision=str(tmp_path / "vision.safetensors")))
    loaded = dict(model.vision.backbone.named_parameters())
    for key, value in source.backbone.named_parameters():
        if value.shape == loaded[key].shape:
            torch.testing.assert_close(loaded[key], value, msg=key)
        else:
            assert key.endswith((POSITIONS, BIAS_TABLE)), key
    assert {key for key in loaded if key.endswith((POSITIONS, BIAS_TABLE))} <= {*source.backbone.state_dict()}
    assert report
