"""Encoders by name: any timm ViT, any Hugging Face encoder, and properties of our layers."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    DistilBertConfig,
    ElectraConfig,
    MPNetConfig,
    RobertaConfig,
    RobertaModel,
    T5Config,
)

from batches.texts import Text
from models.checkpoints import initialise
from models.config import (
    BlockConfig,
    FusionConfig,
    InitConfig,
    PretrainModelConfig,
    TextArchitecture,
    TextConfig,
    VisionConfig,
    heads_error,
)
from models.core import hub_text
from models.core.backbones.positions import sincos_positions
from models.core.blocks import attention_bias
from models.core.hub_text import HubTextEncoder, architecture_of, build_text_encoder
from models.core.text import TextEncoder
from models.core.vision import Concepts, VisionEncoder
from models.pretraining.model import PretrainModel
from tests.messages import OneLine, naming
from tests.models.golden import encoded, fused
from utils.errors import UserError

SIZES = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 40}
torch.manual_seed(0)
PIXELS = torch.randn(2, 3, 32, 32)
IDS = torch.tensor([[2, 7, 8, 9, 3], [2, 11, 3, 1, 1]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]).bool()


def padded(encoder, ids: torch.Tensor = IDS, mask: torch.Tensor = MASK) -> torch.Tensor:
    """States (N, L, D), with zeros after the end of each text."""
    (texts,) = encoder([Text(ids, mask)])
    return texts.padded()


def hub_folder(tmp_path, config) -> str:
    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(tmp_path / "encoder")
    return str(tmp_path / "encoder")


@pytest.mark.parametrize(
    "backbone",
    ["vit_tiny_patch16_224", "beitv2_base_patch16_224", "vit_small_patch14_reg4_dinov2", "eva02_tiny_patch14_224"],
)
def test_any_timm_vit_gives_one_normalised_state_per_patch(backbone):
    config = VisionConfig(backbone=backbone, image_size=32, patch_size=8, width=24, depth=1, heads=2, layer_scale=None)
    concepts = VisionEncoder(config)(PIXELS)
    assert concepts.patches.shape == (2, 16, 24)
    torch.testing.assert_close(concepts.mean, concepts.patches.mean(dim=1))


STEM = {"stem": "convolutions", "width": 24, "depth": 1, "heads": 2}


@pytest.mark.parametrize("backbone", ["vit_tiny_patch16_224", "beitv2_base_patch16_224"])
@pytest.mark.parametrize(("patch_size", "strides"), [(8, [2, 2, 2]), (12, [2, 2, 3]), (1, [])])
def test_a_stem_of_convolutions_gives_one_state_per_patch(backbone, patch_size, strides):
    config = VisionConfig(backbone=backbone, image_size=(48, 24), patch_size=patch_size, **STEM)
    encoder = VisionEncoder(config)
    stem = encoder.backbone.patch_embed
    assert [layer.stride[0] for layer in stem.modules() if isinstance(layer, nn.Conv2d)] == [*strides, 1]
    assert encoder.grid == (48 // patch_size, 24 // patch_size)
    pixels = torch.randn(2, 3, 48, 24)
    patches = encoder(pixels).patches
    assert patches.shape == (2, encoder.grid[0] * encoder.grid[1], 24)
    # The states of an image do not depend on the other images in its batch, unlike with BatchNorm.
    torch.testing.assert_close(encoder(pixels[:1]).patches, patches[:1])
    patches.sum().backward()
    assert all(parameter.grad is not None for parameter in stem.parameters())


def test_a_patch_of_a_convolutional_stem_is_at_its_pixels():
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    changed = pixels.clone()
    changed[:, :, 40:48, 16:24] *= -1  # row 5, column 2
    difference = torch.zeros(64)
    for seed in range(8):
        torch.manual_seed(seed)
        stem = VisionEncoder(VisionConfig(image_size=64, patch_size=8, **STEM)).backbone.patch_embed
        difference += (stem(changed) - stem(pixels)).norm(dim=2)[0].detach()
    # GroupNorm spreads a small part of a change over the image, but most of the change is at the pixel's patch.
    assert difference.argmax() == 5 * 8 + 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 28, "patch_size": 14, **STEM}, ("model.vision.patch_size", "14", "12", "16")),
        ({"backbone": "vit_none"}, ("'vit_none'",)),
        ({"backbone": "resnet18"}, ("resnet18",)),
        ({"image_size": 30, "patch_size": 8}, ("image_size", "30", "patch_size", "8", "24", "32")),
        ({"image_size": 4, "patch_size": 8}, ("image_size", "4", "patch_size", "8 would work")),
        ({"image_size": 100}, ("image_size", "100", "patch_size", "16", "96", "112")),
        ({"width": 128, "heads": 7}, ("model.vision", "128", "7", "4", "8", "width", "heads")),
        ({"width": 128}, ("model.vision", "128", "12", "8", "16", "width", "heads")),
        ({"heads": 7}, ("model.vision", "768", "7", "6", "8", "width", "heads")),
        (
            {"backbone": "vit_base_patch16_224", "width": 128, "heads": 7},
            ("model.vision", "128", "7", "width", "heads"),
        ),
        ({"width": 18, "heads": 2, "positions": "sincos", "image_size": 32, "patch_size": 8}, ("multiple of 4",)),
    ],
)
def test_a_backbone_that_cannot_be_built_is_reported_in_one_line(options, message):
    with pytest.raises(UserError, match=naming(*message)) as error:
        VisionEncoder(VisionConfig(**({"depth": 1} | options)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("width", "heads", "fragments"), [(12, 5, "4 or 6"), (12, 13, "12"), (7, 3, "1 or 7")])
def test_heads_that_do_not_divide_the_width_are_rejected_with_those_that_do(width, heads, fragments):
    expected = f"width {width} is not a multiple of heads {heads}; use {fragments} heads"
    assert heads_error(width, heads) == expected
    with pytest.raises(ValueError, match=expected):
        TextArchitecture(width=width, heads=heads)
    with pytest.raises(UserError, match=f"model.fusion: {expected}"):
        FusionConfig(width=width, heads=heads).block(BlockConfig(width=16, heads=2, intermediate=32))
    assert heads_error(12, 6) is None


def test_uint8_pixels_are_normalised_on_the_device():
    encoder = VisionEncoder(VisionConfig(image_size=16, patch_size=8, width=8, depth=1, heads=2)).eval()
    pixels = torch.randint(0, 256, (1, 3, 16, 16), dtype=torch.uint8)
    by_hand = (pixels / 255 - encoder.pixel_mean) / encoder.pixel_std
    torch.testing.assert_close(encoder(pixels).patches, encoder(by_hand).patches)


def test_a_region_of_all_patches_equals_the_image_and_a_mask_selects_patches():
    encoder = VisionEncoder(VisionConfig(image_size=16, patch_size=8, width=8, depth=1, heads=2)).eval()
    images = encoder(PIXELS[:, :, :16, :16])
    masks = torch.tensor([[1, 1, 1, 1], [0, 1, 0, 0]]).bool()
    regions = encoder.regions(images, masks, torch.tensor([1, 0]))
    torch.testing.assert_close(regions.mean[0], images.mean[1])
    torch.testing.assert_close(regions.mean[1], images.patches[0, 1])


def test_the_mean_of_a_region_is_taken_in_float32_under_autocast():
    encoder = VisionEncoder(VisionConfig(image_size=16, patch_size=8, width=8, depth=1, heads=2)).eval()
    images = Concepts.whole(torch.randn(2, 4, 24))
    masks, index = torch.tensor([[1, 1, 1, 0], [0, 1, 0, 1]]).bool(), torch.tensor([1, 0])
    expected = encoder.regions(images, masks, index).mean
    with torch.autocast("cpu", torch.bfloat16):
        found = encoder.regions(images, masks, index).mean
    assert torch.equal(found, expected)
    assert found.dtype == torch.float32


def test_sincos_positions_are_all_different():
    positions = sincos_positions(5, 7, 16)
    assert positions.abs().max() <= 1
    assert torch.cdist(positions, positions).fill_diagonal_(1).min() > 0.1


@pytest.mark.parametrize(
    ("config", "reference"),
    [
        (BertConfig(**SIZES), BertModel),
        (RobertaConfig(**SIZES, pad_token_id=1, max_position_embeddings=20, layer_norm_eps=1e-5), RobertaModel),
    ],
    ids=["bert", "roberta"],
)
def test_our_layers_equal_hugging_faces_with_its_key_names(config, reference):
    torch.manual_seed(0)
    library_model = reference(config, add_pooling_layer=False).eval()
    ours = TextEncoder(TextConfig(), architecture_of(config)).eval()
    ours.load_state_dict(library_model.state_dict())
    expected = library_model(input_ids=IDS, attention_mask=MASK.long()).last_hidden_state
    torch.testing.assert_close(padded(ours)[MASK], expected[MASK], atol=1e-5, rtol=1e-5)


def test_padding_never_changes_text_states():
    encoder = TextEncoder(
        TextConfig(), TextArchitecture(vocab_size=40, width=16, layers=2, heads=2, intermediate=32)
    ).eval()
    longer = torch.nn.functional.pad(IDS, (0, 4)), torch.nn.functional.pad(MASK, (0, 4))
    torch.testing.assert_close(padded(encoder, *longer)[:, :5][MASK], padded(encoder)[MASK])


def test_a_mask_per_query_hides_the_masked_keys():
    encoder = TextEncoder(
        TextConfig(), TextArchitecture(vocab_size=40, width=16, layers=2, heads=2, intermediate=32)
    ).eval()
    bias = attention_bias(torch.ones(1, 5, 5).tril().bool(), torch.float32)
    positions = torch.arange(5).expand(2, -1)
    changed = IDS.clone()
    changed[:, 4] = 20
    before, after = (encoder.decode(ids, positions, bias).view(2, 5, -1) for ids in (IDS, changed))
    torch.testing.assert_close(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 4], after[:, 4])


def test_any_other_hugging_face_encoder_runs_and_loads_its_weights(tmp_path):
    config = DistilBertConfig(dim=16, n_heads=2, n_layers=2, hidden_dim=32, vocab_size=40)
    folder = hub_folder(tmp_path, config)
    model = PretrainModel(
        PretrainModelConfig(
            vision=VisionConfig(image_size=16, patch_size=8, width=8, depth=1, heads=2),
            text=TextConfig(encoder=folder),
            fusion=FusionConfig(layers=1),
        )
    ).eval()
    assert isinstance(model.text, HubTextEncoder)
    (report,) = initialise(model, InitConfig(text=folder))
    assert not any(name.startswith("text.") for name in report.fresh)
    expected = AutoModel.from_pretrained(folder).eval()(input_ids=IDS, attention_mask=MASK.long()).last_hidden_state
    torch.testing.assert_close(padded(model.text)[MASK], expected[MASK])
    memory = model.fusion.project_concepts(model.vision(PIXELS[:, :, :16, :16]))
    assert fused(model, encoded(model, IDS, MASK), memory).shape == (2, 5, 16)


@pytest.mark.parametrize("as_file", [False, True])
def test_weights_of_another_depth_or_width_are_rejected(tmp_path, as_file):
    sizes = {"dim": 16, "n_heads": 2, "n_layers": 2, "hidden_dim": 32, "vocab_size": 40}
    (tmp_path / "own").mkdir()
    folder = hub_folder(tmp_path / "own", DistilBertConfig(**sizes))
    text = TextConfig(encoder=folder)
    vision = VisionConfig(image_size=16, patch_size=8, width=8, depth=1, heads=2)
    model = PretrainModel(PretrainModelConfig(vision=vision, text=text, fusion=FusionConfig(layers=1)))
    for name, change, as_folder, in_file in (
        ("shallow", {"n_layers": 1}, "depth 1", "lacks 16 parameters"),
        ("deep", {"n_layers": 3}, "depth 3", "1 more layer than the text encoder"),
        ("wide", {"dim": 32}, "width 32", "width 32 in the file, 16 in the model"),
    ):
        (tmp_path / name).mkdir()
        source = hub_folder(tmp_path / name, DistilBertConfig(**{**sizes, **change}))
        weights, fact = (f"{source}/model.safetensors", in_file) if as_file else (source, as_folder)
        with pytest.raises(UserError, match=naming(fact)):
            initialise(model, InitConfig(text=weights))


HUB = {
    "electra": lambda: ElectraConfig(**SIZES, embedding_size=16, max_position_embeddings=20),
    "distilbert": lambda: DistilBertConfig(
        vocab_size=40, dim=16, n_layers=2, n_heads=2, hidden_dim=32, max_position_embeddings=20
    ),
    "mpnet": lambda: MPNetConfig(**SIZES, max_position_embeddings=22),
}


@pytest.mark.parametrize("name", HUB)
def test_dropout_is_applied_in_the_librarys_encoder(tmp_path, name):
    folder = hub_folder(tmp_path, HUB[name]())
    still = TextConfig(encoder=folder, dropout=0.0, attention_dropout=0.0)

    def twice(config: TextConfig) -> tuple[torch.Tensor, torch.Tensor]:
        torch.manual_seed(0)
        encoder = build_text_encoder(config, None).train()
        assert isinstance(encoder, HubTextEncoder)
        return padded(encoder), padded(encoder)

    assert torch.equal(*twice(still))
    for changed in ({"dropout": 0.5}, {"attention_dropout": 0.5}):
        assert not torch.equal(*twice(still.model_copy(update=changed)))


@pytest.mark.parametrize("name", HUB)
def test_the_maximum_text_length_is_taken_from_the_librarys_encoder(tmp_path, name):
    encoder = build_text_encoder(TextConfig(encoder=hub_folder(tmp_path, HUB[name]())), None).eval()
    assert encoder.longest_text == 20
    ids = torch.full((1, 21), 5)
    padded(encoder, ids[:, :20], ids[:, :20].ne(1))
    with pytest.raises((IndexError, RuntimeError)):
        padded(encoder, ids, ids.ne(1))


def test_an_encoder_without_attention_dropout_is_logged(caplog):
    requested = TextConfig(dropout=0.3, attention_dropout=0.2)
    given = T5Config()
    assert hub_text._with_dropout(given, requested).dropout_rate == 0.3
    assert given.dropout_rate == 0.1
    assert caplog.messages == [OneLine("model.text.attention_dropout", "T5Config")]


def test_an_encoder_that_is_not_found_is_reported_in_one_line(tmp_path):
    with pytest.raises(UserError, match=naming("model.text.encoder", "nothing")):
        build_text_encoder(TextConfig(encoder=str(tmp_path / "nothing")), None)


@pytest.fixture(scope="module")
def small() -> PretrainModel:
    torch.manual_seed(0)
    return PretrainModel(
        PretrainModelConfig(
            vision=VisionConfig(image_size=16, patch_size=8, width=8, depth=1, heads=2),
            text=TextConfig(arch=TextArchitecture(vocab_size=40, width=16, layers=1, heads=2, intermediate=32)),
            fusion=FusionConfig(layers=2),
        )
    ).eval()


@torch.no_grad()
def test_texts_that_share_an_image_equal_separate_texts(small):
    """Compares texts about three images, with adjacent or interleaved rows, with one call per text."""
    memory = small.fusion.project_concepts(small.vision(torch.randn(3, 3, 16, 16)))
    texts = encoded(small, torch.randint(4, 40, (6, 4)), torch.ones(6, 4))
    beside, in_any_order = [0, 0, 1, 1, 2, 2], [2, 0, 2, 2, 1, 0]
    for rows, seen in ((beside, memory), (in_any_order, memory.select(torch.tensor(in_any_order)))):
        together = fused(small, texts, seen)
        for text, row in enumerate(rows):
            alone = fused(small, texts.select(torch.tensor([text])), memory.select(torch.tensor([row])))
            torch.testing.assert_close(together[text], alone[0], atol=2e-6, rtol=1e-5)


@torch.no_grad()
def test_batches_encoded_together_equal_separate_batches(small):
    shorter = Text(IDS[1:, :3], MASK[1:, :3])
    batches = [Text(IDS, MASK), shorter, Text(IDS, MASK, token_count=9)]
    for batch, found in zip(batches, small.text(batches), strict=True):
        (alone,) = small.text([batch])
        assert found.packing.length == batch.ids.shape[1]
        torch.testing.assert_close(found.padded(), alone.padded(), atol=2e-6, rtol=1e-5)


@torch.no_grad()
def test_the_last_block_computes_only_the_requested_states(small):
    memory = small.fusion.project_concepts(small.vision(torch.randn(2, 3, 16, 16)))
    texts = encoded(small, IDS, MASK)
    cls = small.fusion.cls(texts, memory)
    torch.testing.assert_close(cls, fused(small, texts, memory)[:, 0], atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("values", "fragments"),
    [
        ({"model_type": "t5", "d_model": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 40}, "T5Model"),
        ({"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 40}, "left to right"),
        ({"model_type": "clip_text_model", "hidden_size": 16, "num_attention_heads": 2}, "left to right"),
    ],
)
def test_a_model_that_is_not_a_text_encoder_is_rejected(values, fragments, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=naming("model.text.encoder", fragments, "BERT")):
        build_text_encoder(TextConfig(encoder=str(tmp_path), arch=None), None)
