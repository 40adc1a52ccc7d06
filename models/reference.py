"""The losses of pre-training, written plainly: **read this file first**.

Texts are padded, each pass through the fusion is a call of its own that projects its keys and values anew, and every state is
computed. :mod:`models.pretrain` gets the same losses and gradients from the same modules without what is computed twice or never
read: padding (:mod:`models.packing`), keys and values (:mod:`models.memory`), states of the last block
(:class:`models.blocks.QueryPositions`), and calls (:class:`models.fusion.FusionQueue`). ``tests/models/test_reference.py``
holds the two against each other, without dropout. Left out here: drop path, steps without a matching loss, losses of weight 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from models import losses
from models.align import HardNegatives
from models.blocks import Attention, Block, ResidualOutput
from models.contrastive import EmbeddedExamples, Examples
from models.fusion import FusionEncoder
from models.heads import predict_box
from models.hub_text import HubTextEncoder
from models.multigrained import MultiGrainedModel
from models.pretrain import PretrainModel
from models.streams.base import AlignedStream
from models.streams.region_text import RegionTextStream
from models.streams.translation import TranslationStream
from models.text import TextEncoder
from utils.batch import ImageTextBatch, MaskedText, PretrainBatch, RegionBatch, TranslationBatch, VideoTextBatch


@dataclass(frozen=True)
class Padded:
    """``states`` (N, L, D) of texts or of images, and which of them are attended to, ``mask`` (N, L) bool; None: all."""

    states: Tensor
    mask: Tensor | None = None

    def select(self, index: Tensor) -> Padded:
        """The sequences numbered ``index`` (M,)."""
        return Padded(self.states[index], None if self.mask is None else self.mask[index])


def reference_losses(model: PretrainModel, batch: PretrainBatch) -> dict[str, Tensor]:
    """Every loss of every stream, as a sum, by the names that ``model(batch)`` gives them."""
    model.contrastive.clamp_temperature()
    totals: dict[str, Tensor] = {}
    batches = batch.streams()
    for name, stream in model.streams.items():  # hard negatives are sampled in this order
        if name not in batches:
            continue
        of_stream = batches[name]
        if isinstance(stream, RegionTextStream):
            by_loss = region_text_losses(model, of_stream, stream.examples(of_stream), stream.has_box(of_stream))
        elif isinstance(stream, TranslationStream):
            by_loss = translation_losses(model, of_stream, stream.examples(of_stream))
        elif isinstance(stream, AlignedStream):
            by_loss = image_text_losses(model, of_stream, stream.examples(of_stream))
        else:
            by_loss = {"mlm": word_loss(model, of_stream.text, None)}
        totals |= {f"{name}/{loss}": total for loss, total in by_loss.items()}
    return totals


def region_text_losses(
    model: MultiGrainedModel, batch: RegionBatch, examples: Examples, has_box: Tensor
) -> dict[str, Tensor]:
    """The five losses of R texts of regions of I images (section 3.3)."""
    images = model.vision(batch.pixels)  # patches (I, P, D), and the mean of each image's
    regions = model.vision.regions(images, batch.patch_mask, batch.image_index)  # the mean of each region's patches
    text = encode(model.text, batch.text.ids, batch.text.mask)
    contrastive, negatives = align(model, model.contrastive.embed_image(regions), embed_text(model, text), examples)
    # The text sees the mean and the patches of its region; its box is predicted from the whole image.
    region = Padded(regions.tokens(), F.pad(batch.patch_mask, (1, 0), value=True))
    whole_image = Padded(images.tokens()[batch.image_index])
    box = predict_box(model.box_head, fuse(model.fusion, text, whole_image)[:, 0])  # eq. 4
    return {
        "contrastive": contrastive,  # eq. 1
        "matching": matching_loss(model, text, region, negatives),  # eq. 2
        "mlm": word_loss(model, batch.text, region),  # eq. 3
        "l1": losses.box_l1(box, batch.boxes_cxcywh, has_box),  # eq. 5
        "giou": losses.box_giou(box, batch.boxes_cxcywh, has_box),
    }


def image_text_losses(
    model: MultiGrainedModel, batch: ImageTextBatch | VideoTextBatch, examples: Examples
) -> dict[str, Tensor]:
    """The losses of N texts of whole images or videos."""
    images = model.vision(batch.pixels)
    text = encode(model.text, batch.text.ids, batch.text.mask)
    contrastive, negatives = align(model, model.contrastive.embed_image(images), embed_text(model, text), examples)
    whole_image = Padded(images.tokens())
    return {
        "contrastive": contrastive,
        "matching": matching_loss(model, text, whole_image, negatives),
        "mlm": word_loss(model, batch.text, whole_image),
    }


def translation_losses(model: MultiGrainedModel, batch: TranslationBatch, examples: Examples) -> dict[str, Tensor]:
    """The losses of N texts and their translations: the first text stands where an image does."""
    first = encode(model.text, batch.text.ids, batch.text.mask)
    second = encode(model.text, batch.other.ids, batch.other.mask)
    contrastive, negatives = align(model, embed_text(model, first), embed_text(model, second), examples)
    return {
        "contrastive": contrastive,
        "matching": matching_loss(model, second, first, negatives),
        "mlm": word_loss(model, batch.text, second),
    }


def align(model: MultiGrainedModel, first: Tensor, second: Tensor, examples: Examples) -> tuple[Tensor, HardNegatives]:
    """The contrastive loss of the embeddings (N, E) of two views of each example, and hard negatives by their similarity."""
    embedded = EmbeddedExamples(first, second, examples)
    wait_for_loss = model.contrastive.start_loss(embedded)  # gathers the embeddings of other ranks
    return wait_for_loss(), model.hard_negatives(embedded)


def embed_text(model: MultiGrainedModel, text: Padded) -> Tensor:
    """Normalised embeddings (N, E) of texts."""
    assert text.mask is not None
    return model.contrastive.embed_padded(text.states, text.mask)


def matching_loss(model: MultiGrainedModel, text: Padded, memory: Padded, negatives: HardNegatives) -> Tensor:
    """Eq. 2: do a text and what it attends to match? Matched pairs, hard negative texts, hard negative images."""
    matched = fuse(model.fusion, text, memory)
    negative_text = fuse(model.fusion, text.select(negatives.text), memory)
    negative_image = fuse(model.fusion, text, memory.select(negatives.image))
    return model.matching_loss([states[:, 0] for states in (matched, negative_text, negative_image)], negatives)


def word_loss(model: MultiGrainedModel, text: MaskedText, memory: Padded | None) -> Tensor:
    """Eq. 3: which words were masked? ``memory`` None: predicted from the text alone, without cross-attention."""
    fused = fuse(model.fusion, encode(model.text, text.masked_ids, text.mask), memory)
    masked = torch.take_along_dim(fused, text.positions.unsqueeze(2), dim=1)
    logits = model.word_head(masked, model.text.word_embeddings)
    return losses.masked_words(logits.flatten(0, 1), text.labels.flatten())


def encode(encoder: TextEncoder | HubTextEncoder, ids: Tensor, mask: Tensor) -> Padded:
    """Texts ``ids`` (N, L) through the text encoder."""
    assert isinstance(encoder, TextEncoder), "an encoder on our own blocks"
    states = encoder.embeddings(ids)
    for block in encoder.encoder.blocks:
        states = run_block(block, Padded(states, mask), None)
    return Padded(states if encoder.projection is None else encoder.projection(states), mask)


def fuse(fusion: FusionEncoder, text: Padded, memory: Padded | None) -> Tensor:
    """Texts through the fusion encoder, where text n attends to sequence n of ``memory``: (N, L, D)."""
    states = text.states
    for block in fusion.blocks:
        states = run_block(block, Padded(states, text.mask), memory)
    return states


def run_block(block: Block, text: Padded, memory: Padded | None) -> Tensor:
    """The post-norm transformer block."""
    states = attend(block.attention, text.states, text)
    if memory is not None and block.crossattention is not None:
        states = attend(block.crossattention, states, memory)
    return add_and_norm(block.output, F.gelu(block.intermediate.dense(states)), states)


def attend(attention: Attention, states: Tensor, memory: Padded) -> Tensor:
    """``states`` (N, L, D) attend to those of ``memory`` (N, K, D') that its mask allows."""
    project = attention.self
    projected = project.query(states), project.key(memory.states), project.value(memory.states)
    query, key, value = map(attention.split_heads, projected)
    mask = None if memory.mask is None else memory.mask[:, None, None, :]
    return add_and_norm(attention.output, attention.attend(query, key, value, mask), states)


def add_and_norm(output: ResidualOutput, states: Tensor, residual: Tensor) -> Tensor:
    """Linear, dropout, residual, LayerNorm."""
    normed: Tensor = output.LayerNorm(output.dropout(output.dense(states)) + residual)
    return normed
