"""The streams of pre-training, a class each (section 3.3).

A stream says what it encodes (``texts_to_encode``, ``has_images``), what it asks of the fusion and what its losses are
(``losses``), what these are divided by (``counts``), and what they cost (``work``). A loss of weight 0 is wanted in no step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from models.align import HardNegatives
from models.contrastive import Examples
from models.flops import Lengths, ModelCost, frames_of, lengths
from models.fusion import FusionEncoder, FusionPass
from models.heads import predict_box
from models.losses import box_giou, box_l1
from models.memory import CrossMemory
from models.multigrained import Identical, MultiGrainedModel, masked_positions
from models.packing import PackedTexts
from models.vision import Concepts
from utils.batch import IGNORE, RegionBatch, Text, TextBatch, TextPairBatch, Work

Part = Any
"""One stream's part of a micro-batch: the batch type that its class names."""

Passes = dict[str, list[FusionPass]]
"""Passes through the fusion, by the loss that needs them."""

Fused = dict[str, list[Tensor]]
"""Fused states (Q, D) of the wanted tokens of each pass, by loss."""


@dataclass(frozen=True)
class Encoded:
    """A stream's part after the encoders: its whole images or videos, and its texts by name."""

    concepts: Concepts | None
    texts: Mapping[str, PackedTexts]

    @property
    def images(self) -> Concepts:
        """The concepts of a stream that has images or videos."""
        assert self.concepts is not None
        return self.concepts


@dataclass(frozen=True)
class Alignment:
    """``contrastive``: call it to wait for the embeddings of the other ranks and get the loss. ``negatives``: for the matching
    loss. None: not wanted."""

    contrastive: Callable[[], Tensor] | None
    negatives: HardNegatives | None


class Stream(ABC):
    """One source of training examples.

    ``weights``: the factor of each loss in the sum of equation 6, without those that are 0.
    """

    all_losses: ClassVar[tuple[str, ...]]
    has_images: ClassVar[bool] = True

    def __init__(self, name: str, weights: Mapping[str, float]):
        self.name = name
        self.weights = {loss: weights[loss] for loss in self.all_losses if weights[loss]}

    @abstractmethod
    def texts_to_encode(self, part: Part, wanted: Collection[str]) -> dict[str, Text]:
        """The texts to encode for the ``wanted`` losses, by name."""

    @abstractmethod
    def losses(
        self, model: MultiGrainedModel, part: Part, encoded: Encoded, wanted: Collection[str]
    ) -> dict[str, Tensor]:
        """The ``wanted`` losses of a micro-batch, as sums over what :meth:`counts` counts."""

    @abstractmethod
    def counts(self, part: Part) -> dict[str, Tensor]:
        """The divisor of each loss: the examples, pairs, tokens or boxes that count."""

    @abstractmethod
    def work(self, cost: ModelCost, part: Part, wanted: Collection[str]) -> Work:
        """Examples, images, tokens and FLOPs (:mod:`models.flops`) of a part in the host's memory."""


class TextStream(Stream):
    """Texts alone: masked words, with the fusion's cross-attention left out (as released)."""

    all_losses = ("mlm",)
    has_images = False

    def texts_to_encode(self, part: TextBatch, wanted: Collection[str]) -> dict[str, Text]:
        return {"masked": part.text.with_masks()} if wanted else {}

    def losses(
        self, model: MultiGrainedModel, part: TextBatch, encoded: Encoded, wanted: Collection[str]
    ) -> dict[str, Tensor]:
        masked = FusionPass(encoded.texts["masked"], None, masked_positions(part.text))
        (fused,) = model.fusion.fuse([masked])
        return {"mlm": model.word_loss(fused, part.text)}

    def counts(self, part: TextBatch) -> dict[str, Tensor]:
        return {"mlm": (part.text.labels != IGNORE).sum()}

    def work(self, cost: ModelCost, part: TextBatch, wanted: Collection[str]) -> Work:
        tokens = lengths(part.text.mask, part.valid)
        return Work(len(tokens), 0, int(tokens.sum()), cost.text.run(tokens) + word_flops(cost, part, tokens, None))


class AlignedStream(Stream):
    """Two views of each example, aligned by the contrastive and the matching loss; masked words, predicted with the other view.

    ``same_text``: the role of examples with equal texts for each other.
    """

    all_losses: ClassVar[tuple[str, ...]] = ("contrastive", "matching", "mlm")

    def __init__(self, name: str, weights: Mapping[str, float], same_text: Identical):
        super().__init__(name, weights)
        self.same_text = same_text

    def texts_to_encode(self, part: Part, wanted: Collection[str]) -> dict[str, Text]:
        texts = {}
        if any(loss != "mlm" for loss in wanted):
            texts["plain"] = part.text.plain()
        if "mlm" in wanted:
            texts["masked"] = part.text.with_masks()
        return texts

    def counts(self, part: Part) -> dict[str, Tensor]:
        return {
            "contrastive": part.valid.sum(),
            "matching": MultiGrainedModel.matching_count(self.examples(part)),
            "mlm": (part.text.labels != IGNORE).sum(),
        }

    def examples(self, part: Part) -> Examples:
        """The examples of the losses, with their keys."""
        return Examples(part.valid, part.text.key, self.same_text)

    def align(
        self,
        model: MultiGrainedModel,
        part: Part,
        view: Concepts | PackedTexts,
        texts: PackedTexts | None,
        wanted: Collection[str],
    ) -> Alignment:
        """Start the contrastive loss between a ``view`` and the ``texts`` of each example, and draw hard negatives by their
        similarity."""
        if texts is None or not {"contrastive", "matching"} & set(wanted):
            return Alignment(None, None)
        head, examples = model.contrastive, self.examples(part)
        first = head.embed_text(view) if isinstance(view, PackedTexts) else head.embed_image(view)
        second = head.embed_text(texts)
        return Alignment(
            contrastive=head.start_loss(first, second, examples) if "contrastive" in wanted else None,
            negatives=model.hard_negatives(first, second, examples) if "matching" in wanted else None,
        )

    @staticmethod
    def fusion_passes(
        part: Part, texts: Mapping[str, PackedTexts], memory: CrossMemory, alignment: Alignment
    ) -> Passes:
        """Passes of the masked words, and of the matching loss, for texts that attend to ``memory``."""
        passes: Passes = {}
        if "masked" in texts:
            passes["mlm"] = [FusionPass(texts["masked"], memory, masked_positions(part.text))]
        if alignment.negatives is not None:
            passes["matching"] = MultiGrainedModel.matching_passes(texts["plain"], memory, alignment.negatives)
        return passes

    def text_flops(self, cost: ModelCost, part: Part, tokens: Lengths, wanted: Collection[str]) -> float:
        """FLOPs of the text encoder, and of the contrastive embeddings, on which hard negatives depend, too."""
        flops = len(self.texts_to_encode(part, wanted)) * cost.text.run(tokens)
        return flops + (cost.align(len(tokens), len(tokens)) if {"contrastive", "matching"} & set(wanted) else 0)

    @staticmethod
    def fusion_flops(cost: ModelCost, part: Part, tokens: Lengths, keys: int, wanted: Collection[str]) -> float:
        """FLOPs of :meth:`fusion_passes`, and of the heads on them."""
        flops = word_flops(cost, part, tokens, keys) if "mlm" in wanted else 0.0
        return flops + (cost.match(tokens, keys) if "matching" in wanted else 0)

    @staticmethod
    def sums(model: MultiGrainedModel, part: Part, alignment: Alignment, fused: Fused) -> dict[str, Tensor]:
        """The wanted losses that aligned streams have in common."""
        sums = {}
        if alignment.contrastive is not None:
            sums["contrastive"] = alignment.contrastive()
        if alignment.negatives is not None:
            sums["matching"] = model.matching_loss(fused["matching"], alignment.negatives)
        if "mlm" in fused:
            sums["mlm"] = model.word_loss(fused["mlm"][0], part.text)
        return sums


class ImageTextStream(AlignedStream):
    """Images with their texts."""

    def losses(
        self, model: MultiGrainedModel, part: Part, encoded: Encoded, wanted: Collection[str]
    ) -> dict[str, Tensor]:
        images, texts = encoded.images, encoded.texts
        alignment = self.align(model, part, images, texts.get("plain"), wanted)
        passes: Passes = {}
        if needs_fusion(wanted):
            passes = self.fusion_passes(part, texts, model.fusion.concept_memory(images), alignment)
        return self.sums(model, part, alignment, fuse_by_loss(model.fusion, passes))

    def work(self, cost: ModelCost, part: Part, wanted: Collection[str]) -> Work:
        tokens, frames = lengths(part.text.mask, part.valid), frames_of(part.pixels)
        rows, keys = len(tokens), cost.vision.keys(frames)
        flops = cost.vision.encode(rows * frames) + self.text_flops(cost, part, tokens, wanted)
        if needs_fusion(wanted):
            flops += cost.fusion.project(rows * keys) + self.fusion_flops(cost, part, tokens, keys, wanted)
        return Work(rows, rows * frames, int(tokens.sum()), flops)


class VideoTextStream(ImageTextStream):
    """Videos with their texts: as images, once the vision encoder has made concepts of their frames."""


class RegionTextStream(AlignedStream):
    """Regions, objects and whole images with their texts (section 3.2): aligned as images are, by the patches of each region; and
    the box of each text, predicted from the whole image."""

    all_losses = (*AlignedStream.all_losses, "l1", "giou")

    def __init__(self, name: str, weights: Mapping[str, float], same_text: Identical, *, whole_image_boxes: bool):
        """``whole_image_boxes``: whether texts of whole images have a box to learn."""
        super().__init__(name, weights, same_text)
        self.whole_image_boxes = whole_image_boxes

    def counts(self, part: RegionBatch) -> dict[str, Tensor]:
        boxes = self.has_box(part).sum()
        return {**super().counts(part), "l1": boxes, "giou": boxes}

    def has_box(self, part: RegionBatch) -> Tensor:
        """The texts whose box is learned, (R,) bool."""
        return part.valid if self.whole_image_boxes else part.valid & ~part.is_image

    def losses(
        self, model: MultiGrainedModel, part: RegionBatch, encoded: Encoded, wanted: Collection[str]
    ) -> dict[str, Tensor]:
        texts = encoded.texts
        regions = model.vision.regions(encoded.images, part.patch_mask, part.image_index)
        alignment = self.align(model, part, regions, texts.get("plain"), wanted)
        passes: Passes = {}
        if needs_fusion(wanted):
            # A text is matched with its region; its box is predicted from the whole image.
            of_regions, of_images = model.fusion.region_memories(regions, encoded.images)
            if {"l1", "giou"} & set(wanted):
                passes["boxes"] = [FusionPass.cls(texts["plain"], of_images)]
            passes |= self.fusion_passes(part, texts, of_regions, alignment)
        fused = fuse_by_loss(model.fusion, passes)
        sums = self.sums(model, part, alignment, fused)
        if "boxes" in fused:
            predicted, has_box = predict_box(model.box_head, fused["boxes"][0]), self.has_box(part)
            sums["l1"] = box_l1(predicted, part.boxes_cxcywh, has_box)
            sums["giou"] = box_giou(predicted, part.boxes_cxcywh, has_box)
        return {loss: total for loss, total in sums.items() if loss in wanted}

    def work(self, cost: ModelCost, part: RegionBatch, wanted: Collection[str]) -> Work:
        tokens = lengths(part.text.mask, part.valid)
        rows, keys = len(tokens), cost.vision.keys()
        images = len(np.unique(part.image_index.numpy()[part.valid.numpy()]))
        flops: float = cost.vision.encode(images) + cost.vision.pool_regions(rows)
        flops += self.text_flops(cost, part, tokens, wanted)
        if needs_fusion(wanted):
            # All patches once, the concept token of every region, and that of every whole image, in which boxes are found.
            flops += cost.fusion.project(images * keys + rows)
            flops += self.fusion_flops(cost, part, tokens, keys, wanted)
        if {"l1", "giou"} & set(wanted):
            located = lengths(part.text.mask, self.has_box(part))
            flops += cost.fusion.run(located, keys, wanted=1) + cost.head("box_head", len(located))
        return Work(rows, images, int(tokens.sum()), flops)


class TranslationStream(AlignedStream):
    """Texts and their translations: cross-view language modelling (CCLM, arXiv:2206.00621), two views of one meaning.

    As released, the first text stands where an image does in the contrastive and the matching loss, and both are projected by
    the text's projection; masked words of the first are predicted with the help of the second.
    """

    has_images = False

    def texts_to_encode(self, part: TextPairBatch, wanted: Collection[str]) -> dict[str, Text]:
        return {**super().texts_to_encode(part, wanted), "translation": part.other} if wanted else {}

    def losses(
        self, model: MultiGrainedModel, part: TextPairBatch, encoded: Encoded, wanted: Collection[str]
    ) -> dict[str, Tensor]:
        texts, translation = encoded.texts, encoded.texts["translation"]
        alignment = Alignment(None, None)
        passes: Passes = {}
        if "plain" in texts:
            alignment = self.align(model, part, texts["plain"], translation, wanted)
        if alignment.negatives is not None:
            memory = text_memory(model.fusion, texts["plain"])
            passes["matching"] = model.matching_passes(translation, memory, alignment.negatives)
        if "masked" in texts:
            memory = text_memory(model.fusion, translation)
            passes["mlm"] = [FusionPass(texts["masked"], memory, masked_positions(part.text))]
        return self.sums(model, part, alignment, fuse_by_loss(model.fusion, passes))

    def work(self, cost: ModelCost, part: TextPairBatch, wanted: Collection[str]) -> Work:
        first, second = lengths(part.text.mask, part.valid), lengths(part.other.mask, part.valid)
        tokens = int(first.sum() + second.sum())
        flops = cost.text.run(second) + sum(cost.text.run(first) for _ in super().texts_to_encode(part, wanted))
        if {"contrastive", "matching"} & set(wanted):
            flops += cost.align(0, 2 * len(first))
        if "matching" in wanted:
            flops += cost.fusion.project(int(first.sum())) + cost.match(second, first)
        if "mlm" in wanted:
            flops += cost.fusion.project(int(second.sum())) + word_flops(cost, part, first, second)
        return Work(len(first), 0, tokens, flops)


def word_flops(cost: ModelCost, part: Part, tokens: Lengths, keys: Lengths | int | None) -> float:
    """FLOPs of the fusion of masked texts, and of the word head."""
    masked = lengths(part.text.labels != IGNORE, part.valid)
    return cost.fusion.run(tokens, keys, wanted=masked) + cost.head("word_head", int(masked.sum()))


def needs_fusion(wanted: Collection[str]) -> bool:
    """Whether any of the losses needs the fusion."""
    return any(loss != "contrastive" for loss in wanted)


def fuse_by_loss(fusion: FusionEncoder, passes: Passes) -> Fused:
    """The passes of all losses in one call of the fusion; the fused states by loss, in the order of its passes."""
    if not passes:
        return {}
    fused = iter(fusion.fuse([each for of_loss in passes.values() for each in of_loss]))
    return {loss: [next(fused) for _ in of_loss] for loss, of_loss in passes.items()}


def text_memory(fusion: FusionEncoder, texts: PackedTexts) -> CrossMemory:
    """The memory of texts that other texts attend to."""
    return fusion.memory(texts.padded(), texts.packing.mask)
