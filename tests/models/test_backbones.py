"""Backbones by name: their weights, their pixel statistics, and names that cannot be used."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from huggingface_hub import constants
from safetensors.torch import save_file
from torch import nn

from models.checkpoints import initialise
from models.checkpoints.settings import model_section, require_same_settings
from models.config import PUBLISHED_PIXELS, AligningConfig, ContrastiveConfig, InitConfig, VisionConfig
from models.core import backbones
from models.core.backbones import build_backbone, pixel_statistics
from models.core.backbones.base import Library, PixelStatistics, VisionBackbone
from models.core.contrastive import ContrastiveHead
from models.core.vision import VisionEncoder
from models.reference import Padded
from tasks.config import RetrievalConfig
from tests.encoders import vision
from tests.encoders.training import learns
from tests.messages import naming
from utils.config import with_previous_defaults
from utils.errors import UserError
from utils.inputs import inputs_of, missing_inputs

NAME = "test_vit"
"""A timm model with 0.3 M parameters, whose weights are published as timm/test_vit.r160_in1k."""


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty Hub cache without network access."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


def published(cache: Path) -> dict[str, torch.Tensor]:
    """Puts weights of :data:`NAME` into the cache, with the classifier that the published file contains."""
    torch.manual_seed(5)
    weights = timm.create_model(NAME).state_dict()
    folder = cache / "models--timm--test_vit.r160_in1k"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs/main").write_text("abc")
    (folder / "snapshots/abc").mkdir(parents=True)
    save_file(
        {name: weight.contiguous() for name, weight in weights.items()}, folder / "snapshots/abc/model.safetensors"
    )
    return weights


def test_timm_weights_are_read_from_the_cache_and_their_licence_is_logged(cache, caplog):
    weights = published(cache)
    model = vision.model_of(VisionConfig(backbone=NAME, image_size=160, drop_path=0.0))
    caplog.set_level("INFO")
    [report] = initialise(model, InitConfig(vision=f"timm:{NAME}.r160_in1k"))
    assert not report.fresh and not report.unused
    for name, parameter in model.vision.backbone.named_parameters():
        assert torch.equal(parameter, weights[name]), name
    reported = naming("init.vision", f"timm:{NAME}.r160_in1k", "apache-2.0")
    assert any(re.search(reported, message) for message in caplog.messages)


def test_unknown_timm_weights_are_rejected_with_the_available_ones(cache):
    model = vision.model_of(VisionConfig(backbone=NAME, image_size=160))
    with pytest.raises(UserError, match=naming("init.vision", "'test_vit.none'", "test_vit.r160_in1k")):
        initialise(model, InitConfig(vision="timm:test_vit.none"))
    with pytest.raises(UserError, match=naming("init.vision", "timm/test_vit.r160_in1k", "HF_HUB_OFFLINE")):
        initialise(model, InitConfig(vision="timm:test_vit.r160_in1k"))


def test_a_backbone_name_is_not_a_missing_file_but_a_folder_may_be():
    config = InitConfig(vision="timm:test_vit", text="some/name")
    assert {key for key, _, _ in inputs_of(config)} == {"vision", "text"} and not missing_inputs(config)
    assert missing_inputs(InitConfig(vision="hf:runs/none")) == {"hf:runs/none": ["vision"]}


def test_weights_of_another_family_are_rejected(tmp_path):
    dinov2, siglip = (
        next(row for row in vision.ROWS if row.backbone == name) for name in ("dinov2", "siglip_vision_model")
    )
    source = tmp_path / "dinov2"
    VisionEncoder(dinov2.config(source)).backbone.save_pretrained(source)
    model = vision.model_of(siglip.config(tmp_path / "siglip"))
    with pytest.raises(UserError, match=naming("init.vision", str(source))):
        initialise(model, InitConfig(vision=str(source)))


def test_pixels_are_normalised_with_the_statistics_of_the_backbone():
    own = VisionEncoder(VisionConfig(backbone="vit_tiny_patch16_224", image_size=32, depth=1))
    assert own.pixel_mean.flatten().tolist() == pytest.approx([0.5] * 3)
    given = VisionConfig(backbone="vit_tiny_patch16_224", **PUBLISHED_PIXELS)
    assert pixel_statistics(given)._asdict() == {
        "mean": PUBLISHED_PIXELS["pixel_mean"],
        "std": PUBLISHED_PIXELS["pixel_std"],
    }
    with pytest.raises(ValueError, match="set both pixel_mean and pixel_std"):
        VisionConfig(pixel_mean=(0.5, 0.5, 0.5))


def test_a_config_saved_by_an_earlier_version_has_clips_statistics():
    saved = {"model": {"vision": {"backbone": "vit_tiny_patch16_224", "layer_scale": None}}, "task": "retrieval"}
    filled = with_previous_defaults(saved, RetrievalConfig)["model"]["vision"]
    assert VisionConfig(**filled).pixel_mean == PUBLISHED_PIXELS["pixel_mean"]
    newer = {"model": {"vision": {**saved["model"]["vision"], "pixel_mean": None, "pixel_std": None}}}
    assert with_previous_defaults(newer, RetrievalConfig) == newer
    section = model_section(saved)
    assert section is not None and section.vision.pixel_std == PUBLISHED_PIXELS["pixel_std"]


def test_weights_trained_with_other_statistics_are_rejected():
    model = vision.model_of(VisionConfig(backbone="vit_tiny_patch16_224", image_size=32, width=32, heads=2, depth=1))
    trained = model.config.model_copy(update={"vision": model.config.vision.model_copy(update=PUBLISHED_PIXELS)})
    facts = ("model.vision.pixel_mean", "[0.5,0.5,0.5]", "[0.48145466,0.4578275,0.40821073]")
    with pytest.raises(UserError, match=naming(*facts)):
        require_same_settings(model, trained, "run", new_text=False)


@pytest.mark.parametrize(
    "name",
    ["vit_small_patch16_dinov3", "eva02_tiny_patch14_224", "vit_small_patch14_dinov2", "hf dinov2", "hf dinov3_vit"],
)
def test_without_layer_scale_every_block_contributes(name, tmp_path):
    row = next(row for row in vision.ROWS if name in (row.backbone, f"hf {row.backbone}"))
    built = VisionEncoder(row.config(tmp_path, layer_scale=None)).train()
    built.patches(vision.pixels_of(built.config)).square().sum().backward()
    for block in built.vision_backbone.blocks:
        weights = [p for p in block.parameters() if p.dim() > 1]
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in weights)


@pytest.mark.parametrize(
    "name", ["hiera_tiny_224", "gmixer_24_224", "mambaout_femto", "efficientnet_b0", "swin_tiny_patch4_window7_224"]
)
def test_a_model_without_a_state_per_patch_is_rejected(name):
    with pytest.raises(UserError, match=naming("model.vision.backbone", f"'{name}'")):
        build_backbone(VisionConfig(backbone=name))


def test_a_name_without_prefix_is_rejected_with_the_possible_prefixes():
    model = vision.model_of(VisionConfig(backbone=NAME, image_size=160))
    with pytest.raises(UserError, match=naming("init.vision", "timm:facebook/dinov2-base", "hf:facebook/dinov2-base")):
        initialise(model, InitConfig(vision="facebook/dinov2-base"))


def test_a_hugging_face_model_without_statistics_needs_them_in_the_config(tmp_path):
    row = next(row for row in vision.ROWS if row.backbone == "dinov2")
    config = row.config(tmp_path)
    assert pixel_statistics(config).mean == (0.4, 0.5, 0.6)
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match=naming("preprocessor_config.json", "model.vision.pixel_mean")):
        VisionEncoder(config)
    VisionEncoder(config.model_copy(update=PUBLISHED_PIXELS))


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        ({"patch_size": 8}, ("model.vision", "patch_size=null")),
        ({"positions": "sincos"}, ("model.vision", "positions=backbone")),
        ({"stem": "convolutions", "patch_size": 8}, ("patch_size=null, stem=linear", "presets/other_vision.yaml")),
        ({"image_size": 60}, ("image_size", "60", "14", "56", "70")),
        ({"heads": 5}, ("heads", "5", "32")),
    ],
)
def test_settings_that_a_hugging_face_backbone_fixes_cannot_be_changed(options, facts, tmp_path):
    row = next(row for row in vision.ROWS if row.backbone == "dinov2")
    config = row.config(tmp_path).model_copy(update=options)
    with pytest.raises(UserError, match=naming(*facts)):
        build_backbone(config)


def test_a_folder_without_a_vision_model_is_rejected(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match=naming("model.vision.backbone", "'bert'", "choose a ViT")):
        build_backbone(VisionConfig(backbone=f"hf:{tmp_path}"))
    with pytest.raises(UserError, match=naming("model.vision.backbone", f"{tmp_path}/none", "does not exist")):
        build_backbone(VisionConfig(backbone=f"hf:{tmp_path}/none"))


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        (
            {"backbone": "test_convnext", "image_size": 64, "patch_size": 16},
            ("model.vision", "test_convnext", "patch_size=null", "presets/other_vision.yaml"),
        ),
        (
            {"backbone": "test_convnext", "image_size": 64, "width": 128, "heads": 4},
            ("model.vision", "test_convnext", "width, heads", "width=null, heads=null", "presets/other_vision.yaml"),
        ),
        (
            {"backbone": "test_convnext", "image_size": 64, "stem": "convolutions"},
            ("model.vision", "stem=linear", "presets/other_vision.yaml"),
        ),
        ({"backbone": "test_convnext", "image_size": 60}, ("image_size", "60", "32", "64")),
        ({"backbone": "swin_tiny_patch4_window7_224"}, ("swin_tiny_patch4_window7_224",)),
    ],
)
def test_features_that_a_convolutional_model_lacks_are_named(options, facts):
    with pytest.raises(UserError, match=naming(*facts)):
        build_backbone(VisionConfig(**options))


def test_the_last_token_can_represent_a_text():
    torch.manual_seed(0)
    config = AligningConfig(embed_dim=4, contrastive=ContrastiveConfig(text="last"))
    head = ContrastiveHead(config, 8, 8)
    states, mask = torch.randn(2, 3, 8), torch.tensor([[1, 1, 1], [1, 1, 0]]).bool()
    last = torch.stack([states[0, 2], states[1, 1]]).unsqueeze(1)
    torch.testing.assert_close(
        head.embed_text(Padded(states, mask)), head.embed_text(Padded(last, torch.ones(2, 1, dtype=torch.bool)))
    )


def test_a_timm_folder_names_its_weights(tmp_path):
    torch.manual_seed(7)
    source = timm.create_model(NAME, num_classes=0)
    timm.models.save_for_hf(source, tmp_path, safe_serialization=True)
    model = vision.model_of(VisionConfig(backbone=NAME, image_size=160, drop_path=0.0))
    [report] = initialise(model, InitConfig(vision=f"timm:{tmp_path}"))
    assert not report.fresh and torch.equal(model.vision.backbone.cls_token, source.cls_token)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=naming("init.vision", "architecture")):
        initialise(model, InitConfig(vision=f"timm:{tmp_path}"))


@pytest.mark.parametrize("safe", [True, False])
def test_a_timm_folder_loads_only_the_tensors_that_it_has(tmp_path, safe):
    torch.manual_seed(7)
    source = timm.create_model(NAME, num_classes=0, depth=3, img_size=96)
    timm.models.save_for_hf(source, tmp_path, safe_serialization=safe)
    init = InitConfig(vision=f"timm:{tmp_path}")
    same = vision.model_of(VisionConfig(backbone=NAME, image_size=96, depth=3, drop_path=0.0))
    [report] = initialise(same, init)
    assert not report.fresh and not report.resized and torch.equal(same.vision.backbone.pos_embed, source.pos_embed)
    with pytest.raises(
        UserError, match=naming("init.vision", "different model", "vision.backbone.blocks.3.norm1.weight")
    ):
        initialise(vision.model_of(VisionConfig(backbone=NAME, image_size=96, drop_path=0.0)), init)
    (tmp_path / "config.json").write_text(json.dumps({"architecture": NAME}))
    [report] = initialise(same, init)
    assert not report.fresh and not report.resized, "even if the folder does not state its sizes"
    with pytest.raises(
        UserError, match=naming("init.vision", "different model", "vision.backbone.blocks.3.norm1.weight")
    ):
        initialise(vision.model_of(VisionConfig(backbone=NAME, image_size=96, drop_path=0.0)), init)


def test_weights_without_layer_scale_name_the_key(tmp_path):
    source = timm.create_model(NAME, num_classes=0, img_size=96, init_values=None)
    timm.models.save_for_hf(source, tmp_path, safe_serialization=True)
    model = vision.model_of(VisionConfig(backbone=NAME, image_size=96, layer_scale=0.1, drop_path=0.0))
    with pytest.raises(UserError, match=naming("init.vision", "LayerScale", "model.vision.layer_scale")):
        initialise(model, InitConfig(vision=f"timm:{tmp_path}"))


def test_a_backbone_may_have_the_prefix_of_its_weights():
    assert VisionConfig(backbone=f"timm:{NAME}") == VisionConfig(backbone=NAME)


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("vit_bas_patch16_224", ("'vit_bas_patch16_224'", "vit_base_patch16_224")),
        ("hf-hub:timm/test_vit", ("unknown prefix", "hf:")),
    ],
)
def test_an_unknown_backbone_is_rejected_with_the_nearest_name(name, facts):
    with pytest.raises(UserError, match=naming("model.vision.backbone", *facts)):
        build_backbone(VisionConfig(backbone=name))


def test_another_library_needs_one_file_and_one_entry(monkeypatch):
    """An adapter for a torchvision model, which the project does not know."""

    class Adapter(VisionBackbone):
        def __init__(self, config: VisionConfig):
            module = torchvision.models.VisionTransformer(int(config.image_size), 16, 2, 2, 32, 64, num_classes=1)
            module.heads = nn.Identity()
            super().__init__(module, config.backbone, list(module.encoder.layers), 32, 16, config.image_size)

        def states(self, pixels: torch.Tensor) -> torch.Tensor:
            patches = self.module._process_input(pixels)
            return self.module.encoder(torch.cat([self.module.class_token.expand(len(pixels), -1, -1), patches], dim=1))

        def set_gradient_checkpointing(self, enabled: bool) -> None:
            if enabled:
                raise UserError("train.recompute: not supported; remove `vision`")

        def compile(self, **options: object) -> None:
            self.module.encoder.compile(**options)

    library = Library(
        "torchvision:", Adapter, lambda name: PixelStatistics((0.5,) * 3, (0.5,) * 3), lambda name, key: {}
    )
    monkeypatch.setattr(backbones, "LIBRARIES", (library, *backbones.LIBRARIES))
    torch.manual_seed(0)
    built = VisionEncoder(VisionConfig(backbone="torchvision:vit", image_size=64)).eval()
    pixels = vision.pixels_of(built.config)
    expected = built.patches(pixels)
    assert expected.shape == (2, 16, 32) and built.pixel_mean.flatten().tolist() == [0.5] * 3
    normalised = (pixels / 255 - built.pixel_mean) / built.pixel_std
    output = built.vision_backbone.output_of_block(normalised, 0)
    torch.testing.assert_close(built.vision_backbone.patches_after_block(normalised, 0, output), expected)
    assert built.vision_backbone.step_flops() > 0 and built.vision_backbone.names_before(1)
    learns(vision.model_of(built.config))
