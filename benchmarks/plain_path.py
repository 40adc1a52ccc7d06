"""The losses of pre-training by the algebra of the released code, as a baseline and as an oracle.

Every text is padded to one length; each stream is encoded by itself, and so are masked texts; a region takes a copy of its
image's patches; each of the passes through the fusion encoder (matched, wrong image and wrong text, masked, box) is a call of its
own, projects the keys and values of its rows anew, and computes every state of every layer; words are predicted at all the
padded places of masked tokens. Attention is fused. None of our layouts and looks is used, so that a mistake in them shows.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models import losses
from models.align import Negatives
from models.encoded import Concepts, Encoded
from models.heads import predict_box
from models.layers import Attention, Layer, gather_positions, merge_heads, split_heads
from models.pretrain import PretrainModel
from models.text import TextEncoder
from utils.batch import (
    ImageTextBatch,
    Losses,
    MaskedText,
    PretrainBatch,
    RegionBatch,
    Term,
    TextPairBatch,
    VideoTextBatch,
)


class Padding(NamedTuple):
    """Tokens to which texts are padded, and those of pairs of texts."""

    texts: int
    translations: int


PADDED = Padding(40, 64)
"""As released."""


def why_not_plain(model: PretrainModel) -> str | None:
    """What is so of a model whose losses are not written out here; None: they are."""
    if not isinstance(model.text, TextEncoder):
        return "model.text.encoder is none of BERT's or RoBERTa's family"
    dropped = [name for name in ("text", "fusion") if getattr(model.config, name).drop_path]
    return f"model.{dropped[0]}.drop_path is set" if dropped else None


def plain_losses(model: PretrainModel, batch: PretrainBatch, padded: Padding = PADDED) -> Losses:
    """What ``model(batch)`` gives. Negatives are drawn in the same order."""
    assert not batch.unmatched, "every stream has its matching loss"
    model.contrastive.clamp_temperature()
    terms: Losses = {}
    if batch.images is not None:
        terms |= _weighted(model, "images", _pair_losses(model, batch.images, "images", padded.texts))
    if batch.videos is not None:
        terms |= _weighted(model, "videos", _pair_losses(model, batch.videos, "videos", padded.texts))
    if batch.regions is not None:
        terms |= _weighted(model, "regions", _region_losses(model, batch.regions, padded.texts))
    if batch.texts is not None:
        terms |= _weighted(model, "texts", {"mlm": _words(model, batch.texts.text, None, None, padded.texts)})
    if batch.pairs is not None:
        terms |= _weighted(model, "pairs", _translation_losses(model, batch.pairs, padded.translations))
    return terms


def _weighted(model: PretrainModel, stream: str, sums: dict[str, Tensor]) -> Losses:
    factor = getattr(model.streams, stream)
    return {f"{stream}/{name}": Term(total, factor * getattr(model.weights, name)) for name, total in sums.items()}


def _pair_losses(
    model: PretrainModel, batch: ImageTextBatch | VideoTextBatch, stream: str, padded: int
) -> dict[str, Tensor]:
    """Those of images, or of videos, with their texts."""
    seen = model.vision(batch.pixels)
    text = _encode(model, batch.text.ids, batch.text.mask, padded)
    contrastive, negatives = model.align(seen, text, model._rows(batch, stream))
    tokens = seen.tokens()
    return {
        "contrastive": contrastive(),
        "matching": _matching(model, text, tokens, None, negatives),
        "mlm": _words(model, batch.text, tokens, None, padded),
    }


def _translation_losses(model: PretrainModel, batch: TextPairBatch, padded: int) -> dict[str, Tensor]:
    """The first text of each pair in the place of an image; its own masked words are found with the help of the second."""
    first = _encode(model, batch.text.ids, batch.text.mask, padded)
    second = _encode(model, batch.other.ids, batch.other.mask, padded)
    contrastive, negatives = model.align_texts(first, second, model._rows(batch, "pairs"))
    return {
        "contrastive": contrastive(),
        "matching": _matching(model, second, first.states, first.mask, negatives),
        "mlm": _words(model, batch.text, second.states, second.mask, padded),
    }


def _region_losses(model: PretrainModel, batch: RegionBatch, padded: int) -> dict[str, Tensor]:
    images = Concepts.whole(model.vision.patches(batch.pixels))
    regions = model.vision.regions(images, batch.patch_mask, batch.image_index)
    text = _encode(model, batch.text.ids, batch.text.mask, padded)
    contrastive, negatives = model.align(regions, text, model._rows(batch, "regions"))
    tokens = regions.tokens()
    mask = torch.cat([batch.patch_mask.new_ones(len(tokens), 1), batch.patch_mask], dim=1)
    whole = images.tokens().index_select(0, batch.image_index)
    predicted = predict_box(model.box_head, _fuse(model, text, whole, None))
    counts = batch.valid if model.weights.whole_image_boxes else batch.valid & ~batch.is_image
    return {
        "contrastive": contrastive(),
        "matching": _matching(model, text, tokens, mask, negatives),
        "mlm": _words(model, batch.text, tokens, mask, padded),
        "l1": losses.box_l1(predicted, batch.boxes_cxcywh, counts),
        "giou": losses.box_giou(predicted, batch.boxes_cxcywh, counts),
    }


def _matching(model: PretrainModel, text: Encoded, tokens: Tensor, mask: Tensor | None, negatives: Negatives) -> Tensor:
    matched = _fuse(model, text, tokens, mask)
    wrong_texts = Encoded.concat([text.rows(negatives.text), text])
    wrong_images = torch.cat([tokens, tokens.index_select(0, negatives.image)])
    masks = None if mask is None else torch.cat([mask, mask.index_select(0, negatives.image)])
    wrong_text, wrong_image = _fuse(model, wrong_texts, wrong_images, masks).split([len(tokens)] * 2)
    return model.matching_loss([matched, wrong_text, wrong_image], negatives.found)


def _words(model: PretrainModel, text: MaskedText, tokens: Tensor | None, mask: Tensor | None, padded: int) -> Tensor:
    fused = _fuse(model, _encode(model, text.masked_ids, text.mask, padded), tokens, mask)
    states = gather_positions(fused.states, text.positions).flatten(0, 1)
    return losses.masked_words(model.word_head(states, model.text.word_embeddings), text.labels.flatten())


def _encode(model: PretrainModel, ids: Tensor, mask: Tensor, padded: int) -> Encoded:
    """States of texts padded to ``padded`` tokens."""
    encoder = model.text
    assert isinstance(encoder, TextEncoder)
    more = (0, max(0, padded - ids.shape[1]))
    ids, mask = F.pad(ids, more, value=encoder.arch.pad_id), F.pad(mask, more)
    states = encoder.embeddings(ids)
    for layer in encoder.encoder.layer:
        states = _layer(layer, states, mask)
    return Encoded(states if encoder.projection is None else encoder.projection(states), mask)


def _fuse(model: PretrainModel, text: Encoded, tokens: Tensor | None, mask: Tensor | None) -> Encoded:
    """Each text with its own row of image ``tokens`` (N, 1 + P, D), of which it sees ``mask`` (N, 1 + P); None: without an image,
    and without the cross-attention."""
    states = text.states
    for layer in model.fusion.layer:
        states = _layer(layer, states, text.mask, tokens, mask)
    return Encoded(states, text.mask)


def _layer(
    layer: nn.Module,
    states: Tensor,
    mask: Tensor,
    memory: Tensor | None = None,
    memory_mask: Tensor | None = None,
) -> Tensor:
    assert isinstance(layer, Layer)
    states = _attention(layer.attention, states, states, mask)
    if memory is not None:
        assert layer.crossattention is not None
        states = _attention(layer.crossattention, states, memory, memory_mask)
    output: Tensor = layer.output(layer.intermediate(states), states)
    return output


def _attention(attention: Attention, states: Tensor, memory: Tensor, mask: Tensor | None) -> Tensor:
    project = attention.self
    queries, keys, values = (
        split_heads(part, project.heads) for part in (project.query(states), project.key(memory), project.value(memory))
    )
    seen = None if mask is None else mask[:, None, None, :]
    output: Tensor = attention.output(merge_heads(attention.attend(queries, keys, values, seen)), states)
    return output
