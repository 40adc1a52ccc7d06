"""Loading BEiT-2 and BERT files: which tensors are loaded, copied, resized, dropped, and left at their initial values."""

from __future__ import annotations

import argparse

import pytest
import torch
from safetensors.torch import save_file

from models.checkpoints import initialise, load_weights
from models.checkpoints.files import read_weights
from models.checkpoints.initialise import fresh_parameters, loaded_weights
from models.config import FusionConfig, InitConfig, PretrainModelConfig, TextArchitecture, TextConfig, VisionConfig
from models.pretraining.model import PretrainModel
from tests.messages import naming
from utils.errors import UserError

ARCH = TextArchitecture(vocab_size=40, width=16, layers=2, heads=2, intermediate=32, max_positions=12)
CONFIG = PretrainModelConfig(
    vision=VisionConfig(image_size=32, patch_size=8, width=16, depth=2, heads=2),
    text=TextConfig(arch=ARCH),
    fusion=FusionConfig(layers=1),
    embed_dim=8,
)


@pytest.fixture
def model() -> PretrainModel:
    torch.manual_seed(0)
    return PretrainModel(CONFIG)


def beit_state(shared: bool = False, grid: int = 4) -> dict[str, torch.Tensor]:
    """A BEiT-2 file as published: heads, index buffers, and a single table for all blocks if ``shared``."""
    torch.manual_seed(1)
    source = PretrainModel(
        CONFIG.model_copy(update={"vision": CONFIG.vision.model_copy(update={"image_size": 8 * grid})})
    ).vision.backbone
    state = {name: torch.randn_like(value) for name, value in source.state_dict().items()}
    if shared:
        tables = [name for name in state if name.endswith("bias_table")]
        state["rel_pos_bias.relative_position_bias_table"] = state[tables[0]]
        for name in tables:
            del state[name]
    state |= {"head.weight": torch.zeros(3, 16), "head.bias": torch.zeros(3), "mask_token": torch.zeros(1)}
    state["blocks.0.attn.relative_position_index"] = torch.zeros(17, 17, dtype=torch.int64)
    return state


def bert_state(layers: int = 2, prefix: str = "bert.") -> dict[str, torch.Tensor]:
    """A BERT file as published, with old names of the norms, the pooler, and the next-sentence head."""
    torch.manual_seed(2)
    arch = ARCH.model_copy(update={"layers": layers})
    source = PretrainModel(CONFIG.model_copy(update={"text": TextConfig(arch=arch)}))
    state = {f"{prefix}{name}": torch.randn_like(value) for name, value in source.text.state_dict().items()}
    state |= {f"cls.predictions.{n}": torch.randn_like(v) for n, v in source.word_head.state_dict().items()}
    old = {
        n: n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta") for n in state
    }
    state = {old[name]: value for name, value in state.items()}
    state[f"{prefix}pooler.dense.weight"] = torch.zeros(16, 16)
    state["cls.seq_relationship.bias"] = torch.zeros(2)
    state["cls.predictions.decoder.weight"] = state[f"{prefix}embeddings.word_embeddings.weight"]
    state[f"{prefix}embeddings.position_ids"] = torch.arange(12)
    return state


@pytest.mark.parametrize("shared", [False, True])
def test_beit_fills_the_whole_vision_encoder(model, tmp_path, shared):
    state = beit_state(shared)
    torch.save({"model": state}, tmp_path / "beit.pth")
    (report,) = initialise(model, InitConfig(vision=str(tmp_path / "beit.pth")))
    assert report.fresh == []
    assert report.unused == []
    assert {"head.weight", "mask_token", "blocks.0.attn.relative_position_index"} <= report.dropped.keys()
    assert len(report.copied) == (2 if shared else 0)
    table = "rel_pos_bias.relative_position_bias_table" if shared else "blocks.1.attn.relative_position_bias_table"
    assert torch.equal(model.vision.backbone.blocks[1].attn.relative_position_bias_table, state[table])


def test_beit_weights_of_another_grid_are_resized_with_a_message(model, tmp_path):
    save_file(beit_state(grid=5), tmp_path / "beit.safetensors")
    (report,) = initialise(model, InitConfig(vision=str(tmp_path / "beit.safetensors")))
    assert len(report.resized) == 2
    assert "84 to 52 rows" in "\n".join(report.lines())
    assert sum("unused" in line for line in report.lines()) <= 2, (
        "unused tensors must be counted by part instead of listed"
    )


def vit_state(image_size: int) -> tuple[PretrainModel, dict[str, torch.Tensor]]:
    """A model with a plain ViT with absolute positions, and random weights under its backbone's names."""
    vision = VisionConfig(
        backbone="vit_tiny_patch16_224", image_size=image_size, patch_size=8, width=16, depth=2, heads=2
    )
    model = PretrainModel(CONFIG.model_copy(update={"vision": vision}))
    return model, {name: torch.randn_like(value) for name, value in model.vision.backbone.state_dict().items()}


def test_absolute_positions_of_another_grid_are_resized_with_a_message(tmp_path):
    _, state = vit_state(48)
    save_file(state, tmp_path / "vit.safetensors")
    model, _ = vit_state(32)
    (report,) = initialise(model, InitConfig(vision=str(tmp_path / "vit.safetensors")))
    assert report.fresh == report.unused == []
    assert "37 to 17 rows" in "\n".join(report.lines())
    assert torch.equal(model.vision.backbone.pos_embed[:, 0], state["pos_embed"][:, 0])


def test_absolute_positions_of_another_width_or_a_non_square_grid_are_rejected(tmp_path):
    model, state = vit_state(32)
    save_file(state | {"pos_embed": torch.zeros(1, 37, 8)}, tmp_path / "width.safetensors")
    with pytest.raises(UserError, match="shapes differ: pos_embed is"):
        initialise(model, InitConfig(vision=str(tmp_path / "width.safetensors")))
    save_file(state | {"pos_embed": torch.zeros(1, 12, 16)}, tmp_path / "square.safetensors")
    with pytest.raises(UserError, match=naming("12 positions")):
        initialise(model, InitConfig(vision=str(tmp_path / "square.safetensors")))


def test_pixel_statistics_of_255_levels_are_rejected():
    with pytest.raises(ValueError, match=r"between 0 and 1, not be 123\.6; divide values in 0\.\.255 by 255"):
        VisionConfig(pixel_mean=(123.6, 116.2, 103.5), pixel_std=(58.4, 57.1, 57.4))


def test_the_first_blocks_of_a_deeper_file_are_loaded_and_the_others_reported(tmp_path):
    model, state = vit_state(32)
    more = {name.replace("blocks.1.", "blocks.2."): torch.full_like(tensor, 9.0) for name, tensor in state.items()}
    save_file(
        state | {name: each for name, each in more.items() if "blocks.2." in name}, tmp_path / "three.safetensors"
    )
    reports = initialise(model, InitConfig(vision=str(tmp_path / "three.safetensors")))
    assert "three.safetensors (the first 2 of 3 blocks)" in loaded_weights(model, reports).sources
    assert {name.split(".")[1] for name in reports[0].dropped} == {"2"} and not reports[0].unused
    assert torch.equal(model.state_dict()["vision.backbone.blocks.1.norm1.weight"], state["blocks.1.norm1.weight"])


def test_a_file_of_another_width_or_depth_says_so(tmp_path):
    model, state = vit_state(32)
    kept = {name: tensor for name, tensor in state.items() if not name.startswith("blocks.1.")}
    save_file(kept, tmp_path / "one.safetensors")
    with pytest.raises(
        UserError, match=naming("init.vision", "lacks 1 of the 2 blocks", "blocks.1.*", "model.vision.depth")
    ):
        initialise(model, InitConfig(vision=str(tmp_path / "one.safetensors")))
    wide = {name: torch.cat([tensor] * 2, dim=-1) for name, tensor in state.items()}
    save_file(wide, tmp_path / "wide.safetensors")
    with pytest.raises(UserError, match=r"shapes differ \(width 32 in the file, 16 in the model\)"):
        initialise(model, InitConfig(vision=str(tmp_path / "wide.safetensors")))


def test_a_file_whose_names_begin_with_the_module_that_holds_the_backbone_is_loaded(tmp_path):
    model, state = vit_state(32)
    save_file({f"encoder.{name}": tensor for name, tensor in state.items()}, tmp_path / "wrapped.safetensors")
    (report,) = initialise(model, InitConfig(vision=str(tmp_path / "wrapped.safetensors")))
    assert report.fresh == report.unused == []
    save_file({f"a.{name}": tensor.clone() for name, tensor in bert_state().items()}, tmp_path / "bert.safetensors")
    with pytest.raises(UserError, match=naming("contains no tensor", "its tensors are", "use a file of this backbone")):
        initialise(model, InitConfig(vision=str(tmp_path / "bert.safetensors")))


def test_text_weights_that_do_not_fit_say_why(model, tmp_path):
    bert = {name: tensor.clone() for name, tensor in bert_state().items()}
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    for changed, facts in (
        (
            {name: each for name, each in bert.items() if ".attention." not in name},
            ("lacks 20 parameters of the text encoder",),
        ),
        ({"bert.embeddings.word_embeddings.weight": torch.zeros(300, 16)}, ("300 words", "model.text.encoder")),
        (
            {"blocks.0.norm.weight": torch.zeros(4)},
            ("no layer of a BERT", "blocks.0.norm.weight", "model.text.arch=null"),
        ),
    ):
        file = {**bert, **changed} if "words" in facts[0] else changed
        save_file(file, tmp_path / "model.safetensors")
        with pytest.raises(UserError, match=naming("init.text", *facts)):
            initialise(model, InitConfig(text=str(tmp_path)))
    (tmp_path / "config.json").write_text('{"model_type": "distilbert"}')
    with pytest.raises(UserError, match=naming("init.text", "is a distilbert", "a bert", "model.text.arch=null")):
        initialise(model, InitConfig(text=str(tmp_path)))


@pytest.mark.parametrize("prefix", ["bert.", ""])
def test_bert_fills_text_and_fusion_and_leaves_cross_attention_fresh(model, tmp_path, prefix):
    folder = tmp_path / "bert"
    folder.mkdir()
    state = bert_state(prefix=prefix)
    torch.save(state, folder / "pytorch_model.bin")
    (report,) = initialise(model, InitConfig(text=str(folder)))
    assert report.fresh
    assert all(name.startswith("fusion.layer.0.crossattention.") for name in report.fresh)
    assert report.unused == []
    last = state[f"{prefix}encoder.layer.1.output.dense.weight"]
    assert torch.equal(model.text.encoder.layer[1].output.dense.weight, last)
    assert torch.equal(model.fusion.layer[0].output.dense.weight, last)
    assert report.copied["fusion.layer.0.output.dense.weight"] == "text.encoder.layer.1.output.dense.weight"
    assert torch.equal(model.word_head.bias, state["cls.predictions.bias"])
    fresh = fresh_parameters(model, [report])
    assert "contrastive.temperature" in fresh
    assert "box_head.0.weight" in fresh
    assert "vision.backbone.cls_token" not in fresh


def test_half_as_many_layers_are_initialised_from_every_second_bert_layer(model, tmp_path):
    """For 12 layers from BERT large, the authors' code uses layers 1, 3, … 23."""
    state = bert_state(layers=4)
    save_file({k: v.clone() for k, v in state.items()}, tmp_path / "model.safetensors")
    (report,) = initialise(model, InitConfig(text=str(tmp_path)))
    for ours, theirs in ((0, 1), (1, 3)):
        expected = state[f"bert.encoder.layer.{theirs}.output.dense.weight"]
        assert torch.equal(model.text.encoder.layer[ours].output.dense.weight, expected)
    assert any("encoder.layer.0." in name for name in report.dropped)


def test_a_file_that_does_not_fit_is_reported_in_one_line(model, tmp_path):
    save_file({k: v.clone() for k, v in bert_state(layers=3).items()}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=naming("3 layers", "model.text", "2")):
        initialise(model, InitConfig(text=str(tmp_path)))
    save_file({"patch_embed.proj.weight": torch.zeros(16, 3, 4, 4)}, tmp_path / "beit.safetensors")
    with pytest.raises(UserError, match=r"shapes differ: patch_embed.proj.weight is \(16, 3, 4, 4\)"):
        initialise(model, InitConfig(vision=str(tmp_path / "beit.safetensors")))
    with pytest.raises(UserError, match=naming("init.vision", "none.pth does not exist", "init.vision=null")):
        initialise(model, InitConfig(vision=str(tmp_path / "none.pth")))
    with pytest.raises(ValueError, match="set either checkpoint, or vision and text"):
        InitConfig(vision="a", checkpoint="b")


def test_our_own_checkpoint_is_loaded_completely(model, tmp_path):
    torch.manual_seed(5)
    other = PretrainModel(CONFIG)
    save_file(dict(other.state_dict()), tmp_path / "model.safetensors")
    load_weights(model, tmp_path / "model.safetensors").require_complete()
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("encoder", ["vision", "text", "fusion"])
@pytest.mark.parametrize("layers", [1, 3])
def test_a_file_with_another_number_of_layers_is_rejected(tmp_path, encoder, layers):
    """The encoders in the file have two layers, and the model has one layer fewer or more."""
    two = CONFIG.model_copy(update={"fusion": FusionConfig(layers=2)})
    save_file(PretrainModel(two).state_dict(), tmp_path / "two.safetensors")
    other = {
        "vision": {"vision": two.vision.model_copy(update={"depth": layers})},
        "text": {"text": TextConfig(arch=ARCH.model_copy(update={"layers": layers}))},
        "fusion": {"fusion": FusionConfig(layers=layers)},
    }
    difference = "one layer more" if layers == 1 else "one layer fewer"
    with pytest.raises(UserError, match=naming("two.safetensors", difference, f"{encoder} encoder", "model.")):
        load_weights(PretrainModel(two.model_copy(update=other[encoder])), tmp_path / "two.safetensors")


def test_an_incomplete_checkpoint_is_named(model, tmp_path):
    state = dict(model.state_dict())
    del state["box_head.0.bias"]
    save_file({**state, "extra": torch.zeros(1)}, tmp_path / "model.safetensors")
    report = load_weights(model, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=naming("1 parameters", "box_head.0.bias", "1 tensors", "extra")):
        report.require_complete()


def test_published_files_with_command_lines_load_and_files_with_code_do_not(tmp_path):
    torch.save({"model": {"a": torch.zeros(1)}, "args": argparse.Namespace(lr=1)}, tmp_path / "ok.pth")
    assert read_weights(tmp_path / "ok.pth").keys() == {"a"}

    torch.save({"model": {"a": torch.zeros(1)}, "hook": eval}, tmp_path / "bad.pth")
    with pytest.raises(UserError, match=naming("bad.pth", "builtins.eval", "model")):
        read_weights(tmp_path / "bad.pth")
    (tmp_path / "cut.safetensors").write_bytes(b"123")
    with pytest.raises(UserError, match=naming("weight file")):
        read_weights(tmp_path / "cut.safetensors")
