"""Tables that map the tensor names of the published checkpoints to ours and back. All renaming happens in this module."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

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
SEPARATE_FUSION = "cross_encoder."
"""Prefix of the fusion encoder in files that store it separately from the text encoder. These are the files with XLM-R."""
MASKED_WORDS = ("text_encoder.bert.", "text_encoder.cls.")
"""Prefixes that occur only in files whose text encoder is transformers' ``BertForMaskedLM``, which includes a word head."""
NO_MASKED_WORDS = ("text_encoder.embeddings.", "mlm_head.")

Shapes = Mapping[str, tuple[int, ...]]

LAYER = re.compile(r"text_encoder\.(?:bert\.)?encoder\.layer\.(\d+)\.(.*)")

DROPPED = {
    "relative_position_index": "recomputed from the grid",
    "position_ids": "recomputed from the length",
    "one_hot": "the target of label smoothing, recomputed",
}
"""Buffers in published files that our models compute instead: the last component of the name -> the reported reason."""

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
"""Tensors that files with XLM-R also store twice, if the answer decoder shares XLM-R's word table: copy -> original. The two
tensors differ in files with BERT, and in files written by the authors' xGQA script."""

VOCABULARY_TENSORS = re.compile(r"text\..*|(decoder\.)?word_head\.(bias|decoder\..*)|decoder\.embeddings\..*")
"""Names of our parameters that are replaced together with the text encoder: the encoder's parameters, and all parameters with a
row for each word."""


def published_to_ours(text_layers: int) -> Callable[[str], str | None]:
    """A function that maps published names to ours. It returns None for names that our models do not have.

    The published text encoder is a single stack: its first ``text_layers`` layers are the text encoder, and the rest are the
    fusion encoder. In files with XLM-R, the fusion encoder is separate, and all layers of the stack belong to the text encoder.
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


def is_published(names: Collection[str]) -> bool:
    """True if a file uses the published names. (A file with our names can still contain a buffer under its published name.)"""
    return _any(names, "vision_encoder.") and not _any(names, "vision.backbone.")


def _any(names: Collection[str], prefix: str | tuple[str, ...]) -> bool:
    return any(name.startswith(prefix) for name in names)


@dataclass(frozen=True)
class Layout:
    """Properties of a published file that decide which of several published names corresponds to one of our names.

    Attributes:
        text_layers: number of layers of the text encoder, without the fusion encoder.
        masked_words: see :data:`MASKED_WORDS`.
        separate_fusion: see :data:`SEPARATE_FUSION`.
    """

    text_layers: int
    masked_words: bool
    separate_fusion: bool

    @staticmethod
    def of_published(names: Collection[str]) -> Layout:
        """The layout of a file with these names. In a single stack, the fusion encoder begins at the first layer with
        cross-attention."""
        layers = [match for match in map(LAYER.fullmatch, names) if match]
        fused = [int(match[1]) for match in layers if match[2].startswith("crossattention.")]
        layer_count = 1 + max((int(match[1]) for match in layers), default=-1)
        separate_fusion = _any(names, SEPARATE_FUSION)
        masked_words = _any(names, MASKED_WORDS)
        text_layers = layer_count if separate_fusion else min(fused, default=layer_count)
        return Layout(text_layers, masked_words, separate_fusion)

    @staticmethod
    def of_ours(shapes: Shapes) -> Layout:
        """The layout in which the authors' code would save a model that has these tensors under our names.

        With BERT, the text encoder and the fusion encoder form one stack. With XLM-R, which has one token type, they are
        separate. If there is a word head without its own word table, the text encoder is a ``BertForMaskedLM``.
        """
        layers = [int(match[1]) for match in map(_OUR_TEXT_LAYER.match, shapes) if match]
        token_types = shapes.get("text.embeddings.token_type_embeddings.weight", (2,))
        tied = "word_head.bias" in shapes and "word_head.decoder.weight" not in shapes
        return Layout(1 + max(layers, default=-1), tied, token_types[:1] == (1,))

    def has(self, published: str) -> bool:
        """True if a file with this layout can have names that begin with ``published``."""
        if published.startswith(MASKED_WORDS):
            return self.masked_words
        return not (self.masked_words and published.startswith(NO_MASKED_WORDS))


_OUR_TEXT_LAYER = re.compile(r"text\.encoder\.layer\.(\d+)\.")
_OUR_LAYER = re.compile(r"(text\.encoder|fusion)\.layer\.(\d+)\.(.*)")


def ours_to_published(layout: Layout) -> Callable[[str], str | None]:
    """The inverse of :func:`published_to_ours`. It returns None for names that no published file with this layout has."""
    forward = published_to_ours(layout.text_layers)
    prefixes = {ours: published for published, ours in PREFIXES.items() if layout.has(published)}
    names = {ours: published for published, ours in NAMES.items()}
    stack = f"text_encoder.{'bert.' if layout.masked_words else ''}encoder.layer"

    def rename(name: str) -> str | None:
        match = _OUR_LAYER.fullmatch(name)
        if name in names:
            published = names[name]
        elif match and (match[1] == "text.encoder" or not layout.separate_fusion):
            layer = int(match[2]) + (layout.text_layers if match[1] == "fusion" else 0)
            published = f"{stack}.{layer}.{match[3]}"
        else:
            # Several prefixes can match, such as "decoder.embeddings." and "decoder."; use the longest.
            prefix = max((ours for ours in prefixes if name.startswith(ours)), key=len, default=None)
            if prefix is None:
                return None
            published = prefixes[prefix] + name.removeprefix(prefix)
        return published if forward(published) == name else None

    return rename


def stored_twice(names: Collection[str], layout: Layout) -> dict[str, str]:
    """Returns the additional copies of tensors that a published file with ``names`` stores: the original's name, by the name of
    the copy."""
    with_decoder = _any(names, "text_decoder.")
    copies = {copy: original for copy, original in SHARED_WORDS.items() if with_decoder and copy not in names}
    for copy, original in TIED.items():
        head = copy.partition(".decoder.")[0]
        if layout.has(copy) and f"{head}.bias" in names and copy not in names:
            copies[copy] = copies.get(original, original)
    return {copy: original for copy, original in copies.items() if original in names}


def bert_to_ours(name: str) -> str | None:
    """Returns our name of a tensor in a BERT or RoBERTa file. Only embeddings, layers and the word head have one; for all other
    tensors, it returns None."""
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
