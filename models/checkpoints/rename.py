"""Rename tables: published names -> ours. The one place that knows both."""

from __future__ import annotations

import re
from collections.abc import Callable

PREFIXES = {
    "vision_encoder.": "vision.backbone.",
    "text_encoder.bert.embeddings.": "text.embeddings.",
    "text_encoder.embeddings.": "text.embeddings.",
    "text_encoder.cls.predictions.": "word_head.",
    "cross_encoder.encoder.layer.": "fusion.layer.",
    "mlm_head.predictions.": "word_head.",
    "text_decoder.bert.embeddings.": "decoder.embeddings.",
    "text_decoder.bert.encoder.": "decoder.",
    "text_decoder.cls.predictions.": "decoder.word_head.",
    "vision_proj.": "contrastive.vision_proj.",
    "text_proj.": "contrastive.text_proj.",
    "itm_head.": "matching_head.",
    "bbox_head.": "box_head.",
    "cls_head.": "classifier.",
}
NAMES = {"temp": "contrastive.temperature", "absolute_frame_pos_embed": "vision.frame_positions"}
FUSED_APART = "cross_encoder."
"""Names that only files with the fusion encoder apart from the text encoder have: those with XLM-R."""

LAYER = re.compile(r"text_encoder\.(?:bert\.)?encoder\.layer\.(\d+)\.(.*)")

DROPPED = {
    "relative_position_index": "recomputed from the grid",
    "position_ids": "recomputed from the length",
    "one_hot": "the label smoothing's target, recomputed",
}
"""Buffers of the published files that are computed here."""

TIED = {
    "text_encoder.cls.predictions.decoder.weight": "text_encoder.bert.embeddings.word_embeddings.weight",
    "text_encoder.cls.predictions.decoder.bias": "text_encoder.cls.predictions.bias",
    "text_decoder.cls.predictions.decoder.weight": "text_decoder.bert.embeddings.word_embeddings.weight",
    "text_decoder.cls.predictions.decoder.bias": "text_decoder.cls.predictions.bias",
    "mlm_head.predictions.decoder.bias": "mlm_head.predictions.bias",
}
"""Tensors that the published files store twice: copy -> original."""

SHARED_WORDS = {
    "text_decoder.bert.embeddings.word_embeddings.weight": "text_encoder.embeddings.word_embeddings.weight",
}
"""Tensors that files with XLM-R store twice beside those, where the answer decoder shares XLM-R's words. Elsewhere the two
differ: with BERT, and in the files of the released xGQA script."""

OF_THE_VOCABULARY = re.compile(r"text\..*|(decoder\.)?word_head\.(bias|decoder\..*)|decoder\.embeddings\..*")
"""Our parameters that go with a text encoder when it is replaced: it, and what has a row for each of its words."""


def published_to_ours(text_layers: int) -> Callable[[str], str | None]:
    """A function from published names to ours; None for a name that has no place here.

    The published text encoder is one stack: its first ``text_layers`` layers are the text encoder, the rest the fusion. In
    files with XLM-R the fusion is apart, and all layers of the stack are the text encoder's.
    """

    def rename(name: str) -> str | None:
        if name in NAMES:
            return NAMES[name]
        match = LAYER.fullmatch(name)
        if match:
            layer, rest = int(match[1]), match[2]
            stack = f"text.encoder.layer.{layer}" if layer < text_layers else f"fusion.layer.{layer - text_layers}"
            return f"{stack}.{rest}"
        for prefix, ours in PREFIXES.items():
            if name.startswith(prefix):
                return ours + name.removeprefix(prefix)
        return None

    return rename


def bert_to_ours(name: str) -> str | None:
    """A BERT or RoBERTa file's name -> ours, for embeddings, layers and the masked-word head; None for the rest."""
    name = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
    for prefix in ("bert.", "roberta."):
        name = name.removeprefix(prefix)
    if name.startswith(("embeddings.", "encoder.layer.")):
        return f"text.{name}"
    heads = {
        "cls.predictions.transform.": "word_head.transform.",
        "lm_head.dense.": "word_head.transform.dense.",
        "lm_head.layer_norm.": "word_head.transform.LayerNorm.",
    }
    for prefix, ours in heads.items():
        if name.startswith(prefix):
            return ours + name.removeprefix(prefix)
    return {"cls.predictions.bias": "word_head.bias", "lm_head.bias": "word_head.bias"}.get(name)
