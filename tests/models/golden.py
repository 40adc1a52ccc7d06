"""Loads golden cases (inputs and outputs of the authors' code) as our model, our batch and the expected arrays. Cases may have
any sizes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from batches.pretraining import ImageTextBatch, PretrainBatch, RegionBatch, TextBatch, TranslationBatch, VideoTextBatch
from batches.texts import MaskedText, Text
from models.checkpoints.files import read_weights
from models.checkpoints.loading import load_published
from models.config import (
    FusionConfig,
    GroundingModelConfig,
    NLVRModelConfig,
    PretrainContrastiveConfig,
    PretrainModelConfig,
    TextArchitecture,
    TextConfig,
    VideoConfig,
    VisionConfig,
)
from models.core.fusion import FusionEncoder, FusionPass
from models.core.hub_text import BERT_FAMILY
from models.core.keys_values import KeysValues
from models.core.matching import MatchingHead
from models.core.packing import PackedTexts
from models.core.xvlm import XVLM
from models.pretraining.model import PretrainModel
from tests.devices import BOUNDS
from utils.sequences import text_ids

GOLDEN = Path(__file__).parent.parent / "golden"


def arrays(path: Path) -> dict[str, Tensor]:
    with np.load(path, allow_pickle=False) as content:
        found = {name: torch.from_numpy(content[name]) for name in content.files}
    return {name: value.float() if value.dtype == torch.float16 else value for name, value in found.items()}


def manifest(case: str, root: Path = GOLDEN) -> dict[str, Any]:
    return json.loads((root / case / "manifest.json").read_text())


def model_config(
    facts: dict[str, Any], image_size: int | None = None, frames: int | None = None
) -> PretrainModelConfig:
    """If ``frames`` is given, the model has videos. A case with a cross-encoder is multilingual: it has XLM-R, and a fusion with
    separate sizes."""
    vision, sizes, cross = facts["vision"], facts["config"], facts.get("cross")
    stacked = sizes["text_num_hidden_layers"]
    in_text = stacked if cross else sizes["text_fusion_start_at"]
    return PretrainModelConfig(
        vision=VisionConfig(
            image_size=image_size or vision["image_res"],
            patch_size=vision["patch_size"],
            width=vision["width"],
            depth=vision["depth"],
            heads=vision["heads"],
            video=VideoConfig(frames=frames) if frames else None,
        ),
        text=TextConfig(arch=text_architecture(facts["text"], in_text)),
        fusion=cross_encoder(cross, sizes["cross_num_hidden_layers"])
        if cross
        else FusionConfig(layers=stacked - in_text),
        embed_dim=sizes["embed_dim"],
        word_table="own" if cross else "tied",
        contrastive=PretrainContrastiveConfig(identical_texts="negative"),
    )


def text_architecture(text: dict[str, Any], layers: int) -> TextArchitecture:
    """The text encoder of a Hugging Face configuration, with its first ``layers`` layers."""
    return TextArchitecture(
        family=BERT_FAMILY[text["model_type"]],
        vocab_size=text["vocab_size"],
        width=text["hidden_size"],
        layers=layers,
        heads=text["num_attention_heads"],
        intermediate=text["intermediate_size"],
        max_positions=text["max_position_embeddings"],
        token_types=text["type_vocab_size"],
        eps=text["layer_norm_eps"],
        pad_id=text["pad_token_id"],
    )


def cross_encoder(cross: dict[str, Any], layers: int) -> FusionConfig:
    """A fusion with the sizes in a separate Hugging Face configuration."""
    return FusionConfig(
        layers=layers,
        width=cross["hidden_size"],
        heads=cross["num_attention_heads"],
        intermediate=cross["intermediate_size"],
        eps=cross["layer_norm_eps"],
    )


def encoded(model: XVLM, ids: Tensor, mask: Tensor) -> PackedTexts:
    """Encodes texts with the text encoder."""
    (texts,) = model.text([Text(ids, mask.bool())])
    return texts


def fused(model: XVLM, texts: PackedTexts, keys_values: KeysValues | None = None) -> Tensor:
    """Fuses texts and returns the padded states (N, L, D)."""
    return model.fusion.tokens(texts, keys_values).padded()


def fused_together(fusion: FusionEncoder, passes: Sequence[tuple[PackedTexts, KeysValues | None]]) -> list[Tensor]:
    """The fused states (T, D) of all tokens of each pass, in one call."""
    return fusion.fuse([FusionPass(*each) for each in passes])


def in_float64(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


class DrawnNegatives(MatchingHead):
    """Returns the negatives that the authors' code drew in a golden case, in the order of the draws: images, then texts, stream
    by stream."""

    drawn: list[Tensor]

    def draw_negatives(self, similarity: Tensor, allowed: Tensor) -> Tensor:
        return self.drawn.pop(0)


M = TypeVar("M", bound=XVLM)


def with_drawn_negatives(kind: type[M]) -> type[M]:
    """Returns a subclass of this model class whose matching head takes the negatives from ``model.matching_head.drawn``."""

    class Drawn(kind):  # type: ignore[misc, valid-type]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self.matching_head.__class__ = DrawnNegatives

    return Drawn


def assert_golden(actual: Tensor, expected: Tensor, mask: Tensor | None = None) -> None:
    """Checks that tensors are equal within :data:`~tests.devices.BOUNDS` where ``mask`` is true. They may be on different
    devices."""
    expected = expected.cpu()
    error = (actual.cpu() - expected).abs() / expected.abs().clamp(min=1)
    if mask is not None:
        error = error[mask.cpu()]
    assert error.max() < BOUNDS[actual.device.type], f"off by {error.max():.2e}"


PublishedNegatives = with_drawn_negatives(PretrainModel)


def load_case(case: str = "pretrain", root: Path = GOLDEN, image_size: int | None = None) -> PretrainModel:
    facts = manifest(case, root)
    return load_model(
        case,
        with_drawn_negatives(PretrainModel),
        root,
        image_size,
        facts["files"].get("state", facts.get("state_from", "")),
    )


def load_model(
    case: str, kind: type[M], root: Path = GOLDEN, image_size: int | None = None, state: str = "model.safetensors"
) -> M:
    """The model of a case with all its weights."""
    config = model_config(manifest(case, root), image_size)
    section = {"nlvr": NLVRModelConfig, "grounding": GroundingModelConfig}.get(case)
    if section is not None:
        config = section(vision=config.vision, text=config.text, fusion=config.fusion)
    model = kind(config)
    source = root / case / state
    report = load_published(model, read_weights(source), str(source))
    assert report.fresh == []
    assert report.unused in ([], ["absolute_frame_pos_embed"])
    return model.eval()


def everything(rows: Tensor) -> Tensor:
    """A mask under which all of these rows are valid."""
    return torch.ones(len(rows), dtype=torch.bool)


def masked_text(given: dict[str, Tensor], prefix: str = "") -> MaskedText:
    mask = given[f"{prefix}text_atts"].bool()
    ids = given[f"{prefix}text_ids"]
    return MaskedText(
        ids=ids,
        mask=mask,
        masked_ids=given[f"{prefix}text_ids_masked"],
        positions=given[f"{prefix}masked_pos"],
        labels=given[f"{prefix}masked_ids"],
        text_id=text_ids(ids, mask),
    )


def pretrain_batch(given: dict[str, Tensor]) -> PretrainBatch:
    """The batch of a case. Its region rows are sorted by image, which does not change the losses."""
    order = given["idx_to_group_img"].argsort(stable=True)
    region = dict(given)
    for name in ("idx_to_group_img", *(n for n in given if n.startswith("region_") and n != "region_image")):
        region[name] = given[name][order]
    index = region["idx_to_group_img"]
    return PretrainBatch(
        images=ImageTextBatch(given["image"], masked_text(given), everything(given["image"])),
        regions=RegionBatch(
            pixels=given["region_image"],
            image_index=index,
            patch_mask=region["region_image_atts"][:, 1:].bool(),
            boxes_cxcywh=region["region_target_bbox"],
            is_image=region["region_is_image"].bool(),
            several_boxes=torch.zeros(len(region["region_is_image"]), dtype=torch.bool),
            text=masked_text(region, "region_"),
            valid=everything(index),
        ),
        texts=None,
    )


def region_order(given: dict[str, Tensor]) -> Tensor:
    return given["idx_to_group_img"].argsort(stable=True)


def video_batch(given: dict[str, Tensor]) -> PretrainBatch:
    """The batch of a case with videos only."""
    videos = VideoTextBatch(given["video"], masked_text(given, "video_"), everything(given["video"]))
    return PretrainBatch(images=None, regions=None, texts=None, videos=videos)


def all_streams_batch(given: dict[str, Tensor]) -> PretrainBatch:
    """All streams of a case: images and regions, and either videos and captions without images, or texts with translations."""
    batch = pretrain_batch(given)
    if "pair_text_ids" in given:
        other = Text(given["pair_other_ids"], given["pair_other_atts"].bool())
        return replace(
            batch, translations=TranslationBatch(masked_text(given, "pair_"), other, everything(given["pair_text_ids"]))
        )
    assert batch.images is not None
    captions = TextBatch(batch.images.text, batch.images.valid)
    return replace(batch, videos=video_batch(given).videos, texts=captions)


def drawn_negatives(given: dict[str, Tensor]) -> list[Tensor]:
    """The hard negatives of a case in the order in which our model draws them: stream by stream, an image for each text, then a
    text for each image."""
    order = region_order(given)
    inverse = order.argsort()
    drawn = []
    for stream in ("", "video_", "region_", "pair_"):
        for kind in ("image", "text"):
            name = f"{stream}{kind}_neg_idx"
            if name in given:
                drawn.append(inverse[given[name]][order] if stream == "region_" else given[name])
    return drawn
