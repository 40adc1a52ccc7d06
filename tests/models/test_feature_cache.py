"""Frozen blocks of the vision encoder whose output states are cached on disk: states and gradients do not change, and each image
passes through the frozen blocks once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine.precision import Precision
from models.config import VisionConfig
from models.core.vision import VisionEncoder
from optim.setup import set_frozen
from tests.messages import naming
from tests.models.test_flops import counted, fine_tuning
from utils.errors import UserError

SIZES = {"width": 32, "depth": 3, "heads": 2, "drop_path": 0.0, "layer_scale": None}
BACKBONES = {
    "beitv2_base_patch16_224": {"patch_size": 8, "image_size": 32},
    "vit_small_patch14_dinov2": {"image_size": 28},
    "vit_base_patch16_siglip_224": {"image_size": 32},
    "eva02_tiny_patch14_224": {"image_size": 28},
    "vit_base_patch16_dinov3": {"image_size": 32},
}


def encoder(backbone: str, blocks: int | None = 2, seed: int = 0) -> VisionEncoder:
    torch.manual_seed(seed)
    built = VisionEncoder(VisionConfig(backbone=backbone, **SIZES, **BACKBONES[backbone])).train()
    if blocks is not None:
        built.freeze_blocks(blocks)
    return built


def images(encoder: VisionEncoder, count: int = 3) -> torch.Tensor:
    size = encoder.config.image_size
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def gradients(encoder: VisionEncoder, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    encoder.zero_grad()
    encoder.patches(pixels).square().sum().backward()
    return {
        name: parameter.grad.clone() for name, parameter in encoder.named_parameters() if parameter.grad is not None
    }


@pytest.mark.parametrize("backbone", BACKBONES)
def test_states_and_gradients_are_the_same_with_the_cache(backbone, tmp_path):
    built = encoder(backbone)
    pixels = images(built)
    expected, expected_gradients = built.patches(pixels), gradients(built, pixels)
    assert expected_gradients
    assert all(
        name.startswith(("backbone.blocks.2.", "backbone.norm.", "backbone.fc_norm.")) for name in expected_gradients
    )
    built.keep_features(tmp_path, 10**8)
    for _ in range(2):  # computed first, then read from the cache
        torch.testing.assert_close(built.patches(pixels), expected, atol=1e-5, rtol=1e-5)
        for name, gradient in gradients(built, pixels).items():
            torch.testing.assert_close(gradient, expected_gradients[name], atol=1e-4, rtol=1e-4)


def test_in_bf16_the_first_step_has_all_gradients(tmp_path):
    """The first call with a cache runs the backbone without gradients, under the same autocast as the step."""
    built = encoder("vit_small_patch14_dinov2")
    built.keep_features(tmp_path, 10**8)
    with Precision("bf16", torch.device("cpu")).autocast():
        loss = built.patches(images(built)).float().square().sum()
    loss.backward()
    assert [
        name for name, parameter in built.named_parameters() if parameter.requires_grad and parameter.grad is None
    ] == []


def test_an_image_passes_through_the_frozen_blocks_once(tmp_path, monkeypatch):
    built = encoder("vit_small_patch14_dinov2")
    built.keep_features(tmp_path, 10**8)
    pixels, seen = images(built, 4), []
    first = built.features._first_blocks
    built.patches(pixels[:1])  # the first call checks the backbone
    monkeypatch.setattr(built.features, "_first_blocks", lambda batch: (seen.append(len(batch)), first(batch))[1])
    built.patches(pixels[:2])
    built.patches(pixels)
    built.patches(pixels.flip(0))
    assert seen == [1, 2]


def test_other_weights_do_not_use_the_cached_states(tmp_path):
    pixels = images(encoder("vit_small_patch14_dinov2"))
    for seed in (0, 1):
        built = encoder("vit_small_patch14_dinov2", seed=seed)
        expected = built.patches(pixels)
        built.keep_features(tmp_path, 10**8)
        torch.testing.assert_close(built.patches(pixels), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("change", [{"pixel_mean": (0.4, 0.5, 0.6), "pixel_std": (0.1, 0.2, 0.3)}, {"heads": 4}])
def test_other_encoders_with_the_same_weights_do_not_use_the_cached_states(change, tmp_path):
    config = VisionConfig(backbone="vit_small_patch14_dinov2", **SIZES, **BACKBONES["vit_small_patch14_dinov2"])
    first, second = VisionEncoder(config).eval(), VisionEncoder(config.model_copy(update=change)).eval()
    for parameter in first.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    second.load_state_dict(first.state_dict())
    pixels = images(first)
    expected = [each.patches(pixels) for each in (first, second)]
    assert not torch.allclose(*expected, atol=1e-3)
    for built, states in zip((first, second), expected, strict=True):
        built.freeze_blocks(2)
        built.keep_features(tmp_path, 10**8)
        torch.testing.assert_close(built.patches(pixels), states, atol=1e-5, rtol=1e-5)


def test_a_damaged_state_is_computed_again(tmp_path):
    built = encoder("vit_small_patch14_dinov2")
    pixels = images(built)
    expected = built.patches(pixels)
    built.keep_features(tmp_path, 10**8)
    built.patches(pixels)
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size > 600]
    assert len(files) == 3
    for path in files:
        content = bytearray(path.read_bytes())
        content[100] ^= 255
        path.write_bytes(content)
    again = encoder("vit_small_patch14_dinov2")
    again.keep_features(tmp_path, 10**8)
    torch.testing.assert_close(again.patches(pixels), expected, atol=1e-5, rtol=1e-5)


def test_frozen_blocks_stay_in_evaluation_mode_and_their_number_is_checked():
    built = encoder("vit_small_patch14_dinov2").train()
    assert [block.training for block in built.backbone.blocks] == [False, False, True]
    with pytest.raises(UserError, match=naming("optim.freeze.vision_blocks is 3", "at most 2")):
        built.freeze_blocks(3)


@pytest.mark.parametrize("task", ["nlvr", "retrieval", "vqa"])
def test_the_flops_count_equals_the_real_step(task):
    model, batch = fine_tuning(task)
    whole = model.work(batch).flops
    model.vision.freeze_blocks(1)
    set_frozen(model, [])  # the count is computed again
    runs, count = counted(model, batch), model.work(batch).flops
    assert 0.99 * runs <= count <= runs
    assert count < whole


def test_files_are_in_the_configured_folder(tmp_path: Path):
    built = encoder("vit_small_patch14_dinov2")
    built.keep_features(tmp_path / "features", 10**8)
    built.patches(images(built))
    assert any((tmp_path / "features").rglob("*"))


def test_gradient_checkpointing_gives_the_same_gradients_and_keeps_no_activations(tmp_path):
    built = encoder("vit_small_patch14_dinov2")
    pixels = images(built)
    built.keep_features(tmp_path, 10**8)
    expected, kept = gradients(built, pixels), saved_bytes(built, pixels)
    built.backbone.set_grad_checkpointing(True)
    assert saved_bytes(built, pixels) < kept / 2
    for name, gradient in gradients(built, pixels).items():
        torch.testing.assert_close(gradient, expected[name])


def saved_bytes(encoder: VisionEncoder, pixels: torch.Tensor) -> int:
    """Bytes that the forward pass keeps for the backward pass."""
    sizes: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: (sizes.append(tensor.nbytes), tensor)[1], lambda x: x):
        encoder.patches(pixels)
    return sum(sizes)


def test_a_limit_that_keeps_nothing_is_rejected_with_the_smallest_useful_one(tmp_path):
    """Five states of width 32 take 640 bytes. 64 such entries with their digests need 42 kB."""
    built = encoder("vit_small_patch14_dinov2")
    pixels = images(built)
    built.keep_features(tmp_path, 40_000)
    with pytest.raises(UserError, match=naming("optim.freeze.cache.gigabytes is 4e-05", "set it to 0.001")):
        built.patches(pixels)
    built.keep_features(tmp_path, 42_000)
    built.patches(pixels)
    assert sum(path.stat().st_size == 656 for path in tmp_path.rglob("*")) >= 1
