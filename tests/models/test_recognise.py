"""Weight files are recognised by names and shapes: the recorded lists of published files, our files, and files of other
models."""

from __future__ import annotations

import json
import re

import pytest
import torch

from models.checkpoints.recognise import Stack, recognise
from models.config import VisionConfig
from models.core.vision import VisionEncoder
from tests.messages import OneLine
from tests.models.golden import GOLDEN
from tests.models.test_convert import KINDS

CCLM = "X²-VLM with XLM-R (CCLM)"
EXPECTED = {
    "pretrain_base": ("X²-VLM", "pretrain", 224, None, 30522),
    "pretrain_base_video": ("X²-VLM", "pretrain", 224, 3, 30522),
    "pretrain_large": ("X²-VLM", "pretrain", 224, None, 30522),
    "pretrain_large_video": ("X²-VLM", "pretrain", 224, 3, 30522),
    "retrieval_base": ("X²-VLM", "retrieval", 384, None, 30522),
    "retrieval_base_video": ("X²-VLM", "retrieval", 224, 8, 30522),
    "nlvr_base": ("X²-VLM", "nlvr", 384, None, 30522),
    "vqa_base": ("X²-VLM", "vqa", 768, None, 30522),
    "videoqa_base": ("X²-VLM", "video_qa", 224, 5, 30522),
    "grounding_base": ("X²-VLM", "grounding", 384, None, 30522),
    "captioning_base": ("X²-VLM", "captioning", 384, None, 30522),
    "pretrain_cclm_base": (CCLM, "pretrain", 224, None, 250002),
    "plus_retrieval_base": (CCLM, "retrieval", 384, None, 250002),
    "plus_xvnli_base": (CCLM, "nlvr", 384, None, 250002),
    "plus_marvl_base": (CCLM, "nlvr", 384, None, 250002),
    "plus_vqa_base": (CCLM, "vqa", 384, None, 250002),
}
BERT = {
    "embeddings.word_embeddings.weight": (30522, 768),
    "embeddings.position_embeddings.weight": (512, 768),
    "embeddings.token_type_embeddings.weight": (2, 768),
    **{f"encoder.layer.{layer}.output.dense.bias": (768,) for layer in range(12)},
}


def shapes(kind: str) -> dict[str, tuple[int, ...]]:
    listed = json.loads((GOLDEN / "checkpoint_keys" / f"{kind}.json").read_text())["keys"]
    return {name: tuple(shape) for name, shape in listed.items()}


def bert(prefix: str = "", **changes: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    names = {f"embeddings.{name}_embeddings.weight": shape for name, shape in changes.items()}
    return {prefix + name: shape for name, shape in {**BERT, **names}.items()}


@pytest.mark.parametrize("names", ["published", "ours"])
@pytest.mark.parametrize("kind", KINDS)
def test_published_files_are_recognised(kind, names):
    found = recognise(shapes(kind))
    if names == "ours":
        found = recognise(found.shapes)
        assert found.names == found.kind == "ours"
    else:
        assert (found.kind, found.names) == (EXPECTED[kind][0], "published")
    assert (found.task, found.image_size, found.frames, found.words) == EXPECTED[kind][1:]
    large = "large" in kind
    assert found.size == ("large" if large else "base")
    width = 1024 if large else 768
    assert found.vision == Stack(width, 24 if large else 12, 16 if large else 12)
    assert (found.text, found.fusion, found.patch) == (Stack(width, 12), Stack(width, 6), 16)
    assert found.decoder == (Stack(width, 6) if "vqa" in kind else None)


@pytest.mark.parametrize(
    ("given", "kind", "size"),
    [
        (bert(), "BERT", "base"),
        (bert("bert."), "BERT", "base"),
        (bert(word=(28996, 768)), "BERT", "base"),
        (bert("bert.", word=(119547, 768)), "multilingual BERT", "base"),
        (bert("roberta.", word=(50265, 768), token_type=(1, 768)), "RoBERTa", "base"),
        (bert("roberta.", word=(250002, 768), token_type=(1, 768)), "XLM-R", "base"),
        (bert(word=(1000, 768), token_type=(1, 768)), "of RoBERTa's family", "base"),
        (bert(word=(1000, 768)), "of BERT's family", "base"),
    ],
)
def test_text_encoders_are_distinguished_by_their_vocabulary(given, kind, size):
    found = recognise(given)
    assert (found.kind, found.size, found.task, found.text) == (kind, size, None, Stack(768, 12))


@pytest.mark.parametrize(
    ("model", "kind"), [("beitv2_base_patch16_224", "BEiT-2"), ("vit_tiny_patch16_224", "a vision")]
)
def test_vision_transformers_are_distinguished(model, kind):
    config = VisionConfig(backbone=model, image_size=384, depth=2, layer_scale=None)
    names = vision_shapes(config)
    found = recognise(names | {"head.weight": (1000, 8)})
    assert found.kind is not None and found.kind.startswith(kind)
    assert (found.image_size, found.patch, found.vision and found.vision.layers) == (384, 16, 2)


def vision_shapes(config: VisionConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        state = VisionEncoder(config).backbone.state_dict()
    return {name: tuple(value.shape) for name, value in state.items()}


def test_a_shared_position_bias_table_determines_the_resolution():
    names = {name: shape for name, shape in shapes("pretrain_base").items() if name.startswith("vision_encoder.")}
    names = {name.removeprefix("vision_encoder."): shape for name, shape in names.items()}
    tables = [name for name in names if "relative_position" in name]
    names = {name: shape for name, shape in names.items() if name not in tables}
    found = recognise(names | {"rel_pos_bias.relative_position_bias_table": (732, 12)})
    assert (found.image_size, found.vision) == (224, Stack(768, 12, 12))


def swin(names: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """An X-VLM file, which is like an X²-VLM file with a Swin transformer of 224 px."""
    kept = {name: shape for name, shape in names.items() if not name.startswith("vision_encoder.")}
    return kept | {
        "vision_encoder.patch_embed.proj.weight": (128, 3, 4, 4),
        "vision_encoder.layers.0.blocks.0.attn.relative_position_bias_table": (169, 4),
        "vision_encoder.layers.0.blocks.1.attn_mask": (64, 49, 49),
    }


@pytest.mark.parametrize(("words", "expected"), [(30522, "X-VLM"), (250002, "CCLM")])
def test_older_models_are_recognised_by_their_vision_encoder_and_vocabulary(words, expected):
    """The names are from the authors' code of X-VLM and CCLM. Both have a single stack of text and fusion layers."""
    names = shapes("pretrain_base") | {"text_encoder.bert.embeddings.word_embeddings.weight": (words, 768)}
    found = recognise(swin(names))
    assert (found.kind, found.task, found.image_size) == (f"{expected} with a Swin transformer", "pretrain", 224)
    assert (found.vision, found.text, found.fusion) == (None, Stack(768, 12), Stack(768, 6))
    kept = {name: shape for name, shape in names.items() if not name.startswith("vision_encoder.")}
    clip = recognise(kept | {"vision_encoder.encoder.layers.0.mlp.fc1.bias": (3072,)})
    assert clip.kind == f"{expected} with CLIP's vision transformer"
    deit = recognise({name: shape for name, shape in names.items() if "relative_position" not in name})
    assert deit.kind == OneLine(expected, "relative positions")
    assert recognise(kept | {"vision_encoder.other": (1,)}).kind is None


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"conv1.weight": (64, 3, 7, 7)},
        {"vision_encoder.x": ()},
        {"vision.backbone.x": (1,), "text.embeddings.word_embeddings.weight": ()},
        {"vision_encoder.blocks.0.attn.relative_position_bias_table": ()},
        {"vision_encoder.blocks.0.attn.relative_position_bias_table": (10**12, 1), "absolute_frame_pos_embed": (3,)},
        {"text_encoder.encoder.layer.99999999999.output.dense.bias": (), "vision_encoder.blocks.0.norm1.weight": ()},
        {"blocks.0.attn.qkv.weight": (), "patch_embed.proj.weight": (), "pos_embed": (1, 0, 3)},
        {"embeddings.word_embeddings.weight": (5,), "encoder.layer.7.output.dense.bias": ()},
        {"classifier.0.weight": (), "classifier.3.weight": (1, 1), "vision.backbone.a": (), "text.embeddings.b": ()},
    ],
)
def test_arbitrary_shapes_cause_no_error(given):
    assert re.match(r"published|ours|their own", recognise(given).names)
