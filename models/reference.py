"""The pre-training losses, written in the simplest way: **read this file first**.

This is the reference path: texts are padded, each pass through the fusion encoder is a separate call that projects its own keys
and values, and every state is computed. The packed path, :mod:`models.pretraining.model`, computes the same losses and gradients
with the same modules, but without redundant work: it skips padding (:mod:`models.core.packing`), projects keys and values once
(:meth:`models.core.fusion.FusionEncoder.project_regions`), computes only the needed states of the last block
(:class:`models.core.blocks.QueryPositions`), and groups calls (:meth:`models.core.fusion.FusionEncoder.fuse`).
``tests/models/test_reference.py`` compares the two paths without dropout. This file does not implement drop path or steps without
a matching loss. Both paths call the same functions for the mean of a region, the sampling of negatives, the similarity of hard
negatives, the sigmoid loss, and the losses of equations 2 to 5. ``tests/models/oracle.py`` computes all of these, except the
sigmoid loss, without any code of the project.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from batches.losses import Losses, Term
from batches.pretraining import ImageTextBatch, PretrainBatch, RegionBatch, TranslationBatch, VideoTextBatch
from batches.texts import MaskedText
from models.core import losses
from models.core.blocks import Attention, Block, ResidualOutput
from models.core.contrastive import ContrastiveHead
from models.core.fusion import FusionEncoder
from models.core.hub_text import HubTextEncoder
from models.core.losses import EmbeddedPairs, SameGroup
from models.core.matching import allowed_negatives
from models.core.text import TextEncoder
from models.pretraining.model import PretrainModel
from models.pretraining.streams import RegionTextStream, Stream, TextStream, TranslationStream, hard_negatives_in


@dataclass(frozen=True)
class Padded:
    """States (N, L, D) of texts, or (N, 1 + P, D) of images. ``mask`` is boolean and has the first two axes, True = attend; if
    None, all states are attended to. For translations, the other text of each pair takes the place of the image."""

    states: Tensor
    mask: Tensor | None = None

    def select(self, index: Tensor) -> Padded:
        """The sequences with the indices ``index`` (M,)."""
        return Padded(self.states[index], None if self.mask is None else self.mask[index])

    @property
    def cls(self) -> Tensor:
        """The first state (N, D) of each sequence."""
        return self.states[:, 0]

    def padded_with_mask(self) -> tuple[Tensor, Tensor]:
        """The states and the mask, for :meth:`~models.core.contrastive.ContrastiveHead.embed_text`."""
        assert self.mask is not None
        return self.states, self.mask

    def followed_by(self, other: Padded) -> Padded:
        """Appends the sequences of ``other`` and pads all sequences to the longest. Both ``Padded`` objects must have a mask."""
        assert self.mask is not None and other.mask is not None
        length = max(self.states.shape[1], other.states.shape[1])
        states = [F.pad(each.states, (0, 0, 0, length - each.states.shape[1])) for each in (self, other)]
        masks = [F.pad(mask, (0, length - mask.shape[1])) for mask in (self.mask, other.mask)]
        return Padded(torch.cat(states), torch.cat(masks))


def region_text_losses(
    model: PretrainModel, batch: RegionBatch, same_group: SameGroup, has_box: Tensor
) -> dict[str, Tensor]:
    """The five losses of R texts about regions of I images (section 3.3 of the paper)."""
    images = model.vision(batch.pixels)  # the patches (I, P, D) of each image, and their mean (I, D)
    regions = model.vision.regions(images, batch.patch_mask, batch.image_index)  # the mean of each region's patches
    text = encode(model.text, batch.text.ids, batch.text.mask)
    hard = hard_negatives(model, batch)
    pairs = pairs_of(model, batch, model.contrastive.embed_image(regions), text, hard, same_group)
    # The text attends to the mean and the patches of its region; its box is predicted from the whole image.
    region = Padded(regions.states(), F.pad(batch.patch_mask, (1, 0), value=True))
    whole_image = Padded(images.states()[batch.image_index])
    box = model.box_head(fuse(model.fusion, text, whole_image)[:, 0])  # eq. 4
    return {
        "contrastive": contrastive_loss(model.contrastive, pairs),  # eq. 1
        "matching": matching_loss(model, text, region, pairs, hard),  # eq. 2
        "mlm": word_loss(model, batch.text, region),  # eq. 3
        "l1": losses.box_l1(box, batch.boxes_cxcywh, has_box),  # eq. 5
        "giou": losses.box_giou(box, batch.boxes_cxcywh, has_box),
    }


def image_text_losses(
    model: PretrainModel, batch: ImageTextBatch | VideoTextBatch, same_group: SameGroup
) -> dict[str, Tensor]:
    """The losses of N texts about whole images or videos."""
    images = model.vision(batch.pixels)
    text = encode(model.text, batch.text.ids, batch.text.mask)
    hard = hard_negatives(model, batch)
    pairs = pairs_of(model, batch, model.contrastive.embed_image(images), text, hard, same_group)
    whole_image = Padded(images.states())
    return {
        "contrastive": contrastive_loss(model.contrastive, pairs),
        "matching": matching_loss(model, text, whole_image, pairs, hard),
        "mlm": word_loss(model, batch.text, whole_image),
    }


def translation_losses(model: PretrainModel, batch: TranslationBatch, same_group: SameGroup) -> dict[str, Tensor]:
    """The losses of N texts and their translations: the first text takes the place of an image."""
    first = encode(model.text, batch.text.ids, batch.text.mask)
    second = encode(model.text, batch.other.ids, batch.other.mask)
    pairs = pairs_of(model, batch, model.contrastive.embed_text(first), second, None, same_group)
    return {
        "contrastive": contrastive_loss(model.contrastive, pairs),
        "matching": matching_loss(model, second, first, pairs),
        "mlm": word_loss(model, batch.text, second),
    }


def pairs_of(
    model: PretrainModel,
    batch: ImageTextBatch | VideoTextBatch | RegionBatch | TranslationBatch,
    image: Tensor,
    text: Padded,
    hard: Padded | None,
    same_group: SameGroup,
) -> EmbeddedPairs:
    """Embeds the texts of image-text pairs. Pairs with equal texts form a group; ``same_group`` says whether they are negatives
    of each other.

    Args:
        model: the model that embeds the texts.
        batch: the pairs.
        image: (N, E), the image embeddings.
        text: the encoded texts.
        hard: the hard negatives from the data, as returned by :func:`hard_negatives`.
        same_group: see :class:`~models.core.losses.EmbeddedPairs`.
    """
    pairs = EmbeddedPairs(image, model.contrastive.embed_text(text), batch.valid, batch.text.text_id, same_group)
    hard_batch = hard_negatives_in(batch)
    if hard is None or hard_batch is None:
        return pairs
    embedded = model.contrastive.embed_text(hard).unflatten(0, (len(batch.valid), -1))
    return pairs._replace(hard_negatives=embedded, hard_valid=hard_batch.valid)


def hard_negatives(model: PretrainModel, batch: ImageTextBatch | VideoTextBatch | RegionBatch) -> Padded | None:
    """Encodes the batch's hard negative texts, J for each of N pairs, to (N * J, L, D)."""
    hard = hard_negatives_in(batch)
    return None if hard is None else encode(model.text, hard.text.ids, hard.text.mask)


def contrastive_loss(head: ContrastiveHead, pairs: EmbeddedPairs) -> Tensor:
    """Eq. 1: which of all texts belongs to an image, and which of all images to a text? Hard negatives are further texts for one
    image. The softmax does not include invalid pairs and, with ``same_group="ignore"``, pairs with an equal text."""
    if head.bias is not None:
        return head.start_loss(pairs)()  # the sigmoid loss, which the paper does not use
    count = len(pairs.valid)
    itself = torch.eye(count, dtype=torch.bool, device=pairs.valid.device)
    excluded = ~pairs.valid[None, :] & ~itself  # (N, N): pair i is not compared with pair j
    if pairs.same_group == "ignore":
        excluded = excluded | (pairs.group[:, None] == pairs.group[None, :]) & ~itself
    similarity = head.similarity(pairs.image, pairs.text)
    texts, images = (each.masked_fill(excluded, -torch.inf) for each in (similarity, similarity.t()))
    if pairs.hard_negatives is not None:
        texts = torch.cat([texts, losses.hard_similarity(pairs, head.temperature)], dim=1)
    right = torch.arange(count, device=texts.device)
    image_to_text = F.cross_entropy(texts, right, reduction="none")
    text_to_image = F.cross_entropy(images, right, reduction="none")
    return (image_to_text + text_to_image)[pairs.valid].sum() / 2


def matching_loss(
    model: PretrainModel, text: Padded, image: Padded, pairs: EmbeddedPairs, hard: Padded | None = None
) -> Tensor:
    """Eq. 2: do a text and an image match? The loss covers matched pairs, pairs with a negative text and pairs with a negative
    image. More similar negatives are sampled more often. Negative texts can also come from the pair's hard negatives."""
    allowed = allowed_negatives(pairs.valid, pairs.group, pairs.same_group)
    negative_image, negative_text = model.matching_head.sample_negatives(model.contrastive, pairs, allowed)
    fused = [
        fuse(model.fusion, text, image),
        fuse(model.fusion, (text if hard is None else text.followed_by(hard)).select(negative_text), image),
        fuse(model.fusion, text, image.select(negative_image)),
    ]
    return model.matching_head.loss([states[:, 0] for states in fused], allowed.any(dim=1))


def word_loss(model: PretrainModel, text: MaskedText, image: Padded | None) -> Tensor:
    """Eq. 3: which words were masked? Without an ``image``, they are predicted from the text alone, without cross-attention."""
    fused = fuse(model.fusion, encode(model.text, text.masked_ids, text.mask), image)
    masked = torch.take_along_dim(fused, text.positions.unsqueeze(2), dim=1)
    logits = model.word_head(masked, model.text.word_embeddings)
    return losses.masked_words(logits.flatten(0, 1), text.labels.flatten())


def encode(encoder: TextEncoder | HubTextEncoder, ids: Tensor, mask: Tensor) -> Padded:
    """Encodes texts with the token ids ``ids`` (N, L)."""
    assert isinstance(encoder, TextEncoder), "the reference needs an encoder built from our own blocks"
    states = encoder.embeddings(ids)
    for block in encoder.encoder.blocks:
        states = run_block(block, Padded(states, mask), None)
    return Padded(states if encoder.projection is None else encoder.projection(states), mask)


def fuse(fusion: FusionEncoder, text: Padded, image: Padded | None) -> Tensor:
    """Fuses texts with images; text n attends to the states of image n. Returns (N, L, D)."""
    states = text.states
    for block in fusion.blocks:
        states = run_block(block, Padded(states, text.mask), image)
    return states


def run_block(block: Block, text: Padded, image: Padded | None) -> Tensor:
    """The post-norm transformer block."""
    states = attend(block.attention, text.states, text)
    if image is not None and block.crossattention is not None:
        states = attend(block.crossattention, states, image)
    return add_and_norm(block.output, block.intermediate(states), states)


def attend(attention: Attention, states: Tensor, attended: Padded) -> Tensor:
    """``states`` (N, L, D) attend to the states of ``attended`` (N, K, D')."""
    query, (key, value) = attention.self["query"](states), attention.project(attended.states)
    query, key, value = map(attention.split_heads, (query, key, value))
    mask = None if attended.mask is None else attended.mask[:, None, None, :]
    return add_and_norm(attention.output, attention.attend(query, key, value, mask), states)


def add_and_norm(output: ResidualOutput, states: Tensor, residual: Tensor) -> Tensor:
    """Linear, dropout, residual, LayerNorm."""
    normed: Tensor = output.LayerNorm(output.dropout(output.dense(states)) + residual)
    return normed


def reference_losses(model: PretrainModel, batch: PretrainBatch) -> tuple[Tensor, Losses]:
    """Returns the loss of a step with one micro-batch on one rank (eq. 6), and each loss of each stream, summed over examples.

    A stream is one type of training data, such as image-text pairs or videos.
    """
    model.contrastive.clamp_temperature()
    terms: Losses = {}
    loss = torch.zeros((), device=model.contrastive.temperature.device)
    batches = batch.by_stream()
    for name, stream in model.streams.items():  # negatives are sampled in this order
        if name not in batches:
            continue
        totals = stream_losses(model, stream, batches[name])
        for declared in stream.declared:
            if declared.name in stream.weights:
                term = Term(totals[declared.name], stream.weights[declared.name])
                terms[f"{name}/{declared.name}"] = term
                loss = loss + term.weight * term.total / declared.count(batches[name]).clamp(min=1)
    return loss, terms


def stream_losses(model: PretrainModel, stream: Stream[Any], batch: Any) -> dict[str, Tensor]:
    """The losses of one stream, each summed over the examples."""
    match stream:
        case RegionTextStream():
            return region_text_losses(model, batch, stream.same_group, stream.has_box(batch))
        case TranslationStream():
            return translation_losses(model, batch, stream.same_group)
        case TextStream():
            return {"mlm": word_loss(model, batch.text, None)}
        case _:
            return image_text_losses(model, batch, stream.same_group)
