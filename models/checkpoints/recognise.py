"""Recognises the model, task, sizes, resolution, frames and vocabulary of a weight file from the names and shapes of its
tensors."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from models.checkpoints.convert import grid_side, is_buffer
from models.checkpoints.rename import (
    SEPARATE_FUSION,
    SHARED_WORDS,
    TIED,
    Layout,
    Shapes,
    bert_to_ours,
    is_published,
    published_to_ours,
)
from models.core.backbones.tables import CLS_ROWS
from models.core.vision import FRAME_POSITIONS

WORDS = "text.embeddings.word_embeddings.weight"
VOCABULARIES = {
    30522: ("BERT", "uncased BERT, English"),
    28996: ("BERT", "cased BERT, English"),
    21128: ("BERT", "BERT, Chinese"),
    105879: ("multilingual BERT", "uncased multilingual BERT, 102 languages"),
    119547: ("multilingual BERT", "cased multilingual BERT, 104 languages"),
    50265: ("RoBERTa", "RoBERTa, English"),
    250002: ("XLM-R", "XLM-R, 100 languages"),
}
"""Maps the vocabulary size of each published tokenizer to the encoder's name and a description of the tokenizer."""
SIZES = {(768, 12): "base", (1024, 24): "large"}
"""Maps the width and the number of layers of a vision encoder, or of BERT, to the name of the size."""
OTHER_NAMES = "their own"
TABLE = re.compile(r"vision\.backbone\.(?:.*\.)?relative_position_bias_table")
OLDER_VISION_ENCODERS = {
    "a Swin transformer": re.compile(r"vision_encoder\.layers\.\d+\.blocks\."),
    "CLIP's vision transformer": re.compile(r"vision_encoder\.encoder\.layers\.\d+\."),
    "a vision transformer without relative positions": re.compile(r"vision_encoder\.blocks\.\d+\."),
}
"""Vision encoders of X-VLM and CCLM. The other modules of these models have the same names as in X²-VLM. The first matching
pattern applies."""
XLM_R_WORDS = 250002
SWIN_MASK = "vision_encoder.layers.0.blocks.1.attn_mask"
"""Name of an attention mask in Swin transformers, of shape (windows, patches per window, patches per window)."""


@dataclass(frozen=True)
class Stack:
    """Sizes of an encoder. ``heads`` is None if the shapes do not show the number of heads."""

    width: int
    layers: int
    heads: int | None = None


@dataclass(frozen=True)
class Recognised:
    """The model in a weight file, and its sizes. Values are None for modules that are not in the file, and for sizes that the
    shapes do not show.

    Attributes:
        kind: name of the model, such as "X²-VLM"; None if the file was not recognised.
        names: naming scheme of the tensors: "ours", "published" or :data:`OTHER_NAMES`.
        shapes: shapes of the tensors, by our names, without copies and buffers.
        grid: number of patches along a side of an image.
    """

    kind: str | None
    names: str
    shapes: Shapes
    task: str | None = None
    vision: Stack | None = None
    text: Stack | None = None
    fusion: Stack | None = None
    decoder: Stack | None = None
    grid: int | None = None
    patch: int | None = None
    image_size: int | None = None
    frames: int | None = None
    words: int | None = None

    @property
    def size(self) -> str | None:
        """The size, "base" or "large", of the vision encoder; in a file without a vision encoder, of the text encoder."""
        stack = self.vision or self.text
        return None if stack is None else SIZES.get((stack.width, stack.layers))


def recognise(shapes: Shapes) -> Recognised:
    """Recognises a file from the names and shapes of its tensors."""
    names = in_our_names(shapes)
    ours = {name: shapes[file_name] for name, file_name in names.items()}
    kind, naming = _kind_and_naming(shapes, ours)
    if kind is None:
        return Recognised(None, naming, ours)
    table = next((shape for name, shape in ours.items() if TABLE.fullmatch(name) and len(shape) == 2), None)
    swin = _is_swin(shapes)
    grid = None if swin else _grid(ours, table)
    projection = ours.get("vision.backbone.patch_embed.proj.weight", ())
    patch = projection[3] if len(projection) == 4 else None
    frames = ours.get(FRAME_POSITIONS, ())
    return Recognised(
        kind,
        naming,
        ours,
        task=None if naming == OTHER_NAMES else _task_of(ours),
        vision=None if swin else _stack(ours, "vision.backbone.blocks", "norm1.weight", table[1] if table else None),
        text=_stack(ours, "text.encoder.layer", "output.dense.bias"),
        fusion=_stack(ours, "fusion.layer", "output.dense.bias"),
        decoder=_stack(ours, "decoder.layer", "output.dense.bias"),
        grid=grid,
        patch=patch,
        image_size=_swin_size(shapes, patch) if swin else grid * patch if grid and patch else None,
        frames=frames[1] if len(frames) == 4 else None,
        words=ours[WORDS][0] if len(ours.get(WORDS, ())) == 2 else None,
    )


def in_our_names(names: Collection[str]) -> dict[str, str]:
    """Maps our name of each tensor to the tensor's name in the file. Copies and buffers are skipped; unknown names are kept."""
    if is_published(names):
        layout = Layout.of_published(names)
        rename = published_to_ours(layout.text_layers)
        copies = {**TIED, **(SHARED_WORDS if layout.separate_fusion else {})}
        kept = [name for name in names if not is_buffer(name) and copies.get(name) not in names and not _is_mask(name)]
        return {rename(name) or name: name for name in kept}
    if any(name.startswith("vision.backbone.") for name in names):
        return {name: name for name in names if not is_buffer(name)}
    kept = [name for name in names if not is_buffer(name)]
    if _is_vit(names):
        return {f"vision.backbone.{name}" if not name.startswith("head.") else name: name for name in kept}
    return {bert_to_ours(name) or name: name for name in kept}


def _kind_and_naming(shapes: Shapes, ours: Shapes) -> tuple[str | None, str]:
    """The name of the model in the file, and the naming scheme of the tensors."""
    if is_published(shapes):
        separate_fusion = any(name.startswith(SEPARATE_FUSION) for name in shapes)
        multilingual = separate_fusion or ours.get(WORDS, ())[:1] == (XLM_R_WORDS,)
        if any(TABLE.fullmatch(name) for name in ours) and not _is_swin(shapes):
            return "X²-VLM with XLM-R (CCLM)" if multilingual else "X²-VLM", "published"
        older = next((vision for vision, is_of in OLDER_VISION_ENCODERS.items() if any(map(is_of.match, shapes))), None)
        return (f"{'CCLM' if multilingual else 'X-VLM'} with {older}" if older else None), "published"
    if any(name.startswith("vision.backbone.") for name in shapes):
        return "ours", "ours"
    if _is_vit(shapes):
        beit = any(TABLE.fullmatch(name) for name in ours) or "blocks.0.attn.q_bias" in shapes
        return "BEiT-2 (BEiT has the same names)" if beit else "a vision transformer of timm", OTHER_NAMES
    if len(ours.get(WORDS, ())) == 2 and any(name.startswith("text.encoder.layer.") for name in ours):
        token_types = ours.get("text.embeddings.token_type_embeddings.weight", (2,))[:1]
        known, _ = VOCABULARIES.get(ours[WORDS][0], ("", ""))
        return known or ("of RoBERTa's family" if token_types == (1,) else "of BERT's family"), OTHER_NAMES
    return None, OTHER_NAMES


def _is_mask(name: str) -> bool:
    """True if a tensor of a Swin transformer is a mask instead of a parameter."""
    return name.endswith(".attn_mask")


def _is_vit(names: Collection[str]) -> bool:
    return "blocks.0.attn.qkv.weight" in names and "patch_embed.proj.weight" in names


def _is_swin(names: Collection[str]) -> bool:
    return any(map(OLDER_VISION_ENCODERS["a Swin transformer"].match, names))


def _task_of(ours: Mapping[str, tuple[int, ...]]) -> str:
    """The task, recognised from the heads."""
    parts = {name.split(".")[0] for name in ours}
    if "decoder" in parts:
        return "vqa"
    if "word_head" in parts:
        return "pretrain" if parts & {"contrastive", "box_head"} else "captioning"
    if "contrastive" in parts:
        return "pretrain" if "box_head" in parts else "retrieval"
    if "box_head" in parts:
        return "grounding"
    first, last = ours.get("classifier.0.weight", ()), ours.get("classifier.3.weight", ())
    if len(first) != 2 or len(last) != 2:
        return "none"
    fused = _stack(ours, "fusion.layer", "output.dense.bias")
    if fused is not None and first[1] > fused.width:
        return "nlvr"
    return "video_qa" if FRAME_POSITIONS in ours or last[0] > _RELATIONS else "nlvr"


_RELATIONS = 3
"""Number of classes in XVNLI, a task of ``nlvr``. Its classifier sees one image, just as the classifier of ``video_qa`` sees one
video; the number of classes distinguishes the two."""


def _stack(ours: Shapes, prefix: str, width_of: str, heads: int | None = None) -> Stack | None:
    pattern = re.compile(rf"{re.escape(prefix)}\.(\d+)\.")
    layers = {int(match[1]) for name in ours if (match := pattern.match(name))}
    width = ours.get(f"{prefix}.{min(layers, default=0)}.{width_of}", ())
    return Stack(width[-1], len(layers), heads) if layers and width else None


def _grid(ours: Shapes, table: tuple[int, ...] | None) -> int | None:
    """Number of patches along a side of the image, computed from a table of relative or absolute positions."""
    if table is not None and table[0] > CLS_ROWS:
        return grid_side(table[0])
    absolute = ours.get("vision.backbone.pos_embed", ())
    if len(absolute) != 3:
        return None
    prefix = 1 if "vision.backbone.cls_token" in ours else 0
    side = math.isqrt(max(0, absolute[1] - prefix))
    return side if side and side * side == absolute[1] - prefix else None


def _swin_size(shapes: Shapes, patch: int | None) -> int | None:
    mask = shapes.get(SWIN_MASK, ())
    if len(mask) != 3 or patch is None:
        return None
    return math.isqrt(mask[0]) * math.isqrt(mask[1]) * patch
