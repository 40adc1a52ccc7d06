"""What streams have in common: :class:`Stream`, and :class:`AlignedStream` for all that align two views of each example."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from models.align import HardNegatives
from models.contrastive import EmbeddedExamples, Examples
from models.flops import Lengths, ModelCost, lengths
from models.fusion import FusionEncoder, FusionPass
from models.memory import CrossMemory
from models.multigrained import Identical, IdenticalTexts, LossWeights, MaskedWords, MultiGrainedModel
from models.packing import PackedTexts
from models.vision import Concepts
from utils.batch import IGNORE, Text, Work

StreamBatch = Any
"""The batch of one stream; each stream's class names its type."""

Passes = dict[str, list[FusionPass]]
"""Passes through the fusion, by the loss that needs them."""

Fused = dict[str, list[Tensor]]
"""Fused states (Q, D) of the query positions of each pass, by loss."""


@dataclass(frozen=True)
class Encoded:
    """A stream's batch after the encoders: its whole images or videos, None if it has none, and its texts by name."""

    images: Concepts | None
    texts: Mapping[str, PackedTexts]


Views = tuple[Concepts | PackedTexts | None, PackedTexts | None]
"""Two views of each example."""


@dataclass(frozen=True)
class Alignment:
    """What aligned streams prepare before the fusion. ``contrastive``: a function that waits for the embeddings of the other
    ranks and returns the loss. ``negatives``: hard negatives for the matching loss. None where the loss is not wanted."""

    contrastive: Callable[[], Tensor] | None = None
    negatives: HardNegatives | None = None


class Stream(ABC):
    """One source of training examples.

    ``weights``: the factor of each loss in the sum of equation 6, without those that are 0.
    """

    all_losses: ClassVar[tuple[str, ...]]
    has_images: ClassVar[bool] = True

    def __init__(self, name: str, factor: float, weights: LossWeights, identical: IdenticalTexts):
        """``factor``: of all losses of the stream; ``weights`` and ``identical``: of all streams."""
        self.name = name
        self.weights = {
            loss: factor * weight for loss in self.all_losses if (weight := getattr(weights, loss)) and factor
        }

    @abstractmethod
    def texts_to_encode(self, batch: StreamBatch, wanted: Collection[str]) -> dict[str, Text]:
        """The texts to encode for the ``wanted`` losses, by name."""

    @abstractmethod
    def losses(
        self, model: MultiGrainedModel, batch: StreamBatch, encoded: Encoded, wanted: Collection[str]
    ) -> dict[str, Tensor]:
        """The ``wanted`` losses of a micro-batch, as sums over what :meth:`counts` counts."""

    @abstractmethod
    def counts(self, batch: StreamBatch) -> dict[str, Tensor]:
        """The divisor of each loss: the examples, pairs, tokens or boxes that count."""

    @abstractmethod
    def work(self, cost: ModelCost, batch: StreamBatch, wanted: Collection[str]) -> Work:
        """Examples, images, tokens and FLOPs (:mod:`models.flops`) of a batch in the host's memory."""

    @abstractmethod
    def trained(self, model: MultiGrainedModel, losses: Collection[str]) -> Iterator[nn.Parameter]:
        """The parameters for which ``losses`` of the stream, at least one, have gradients."""


class AlignedStream(Stream):
    """Two views of each example, aligned by the contrastive and the matching loss; masked words, predicted with the other view.

    ``same_key``: the role of examples with equal texts for each other.
    """

    all_losses: ClassVar[tuple[str, ...]] = ("contrastive", "matching", "mlm")

    def __init__(self, name: str, factor: float, weights: LossWeights, identical: IdenticalTexts):
        super().__init__(name, factor, weights, identical)
        self.same_key: Identical = getattr(identical, name)

    def texts_to_encode(self, batch: StreamBatch, wanted: Collection[str]) -> dict[str, Text]:
        texts = {}
        if any(loss != "mlm" for loss in wanted):
            texts["plain"] = batch.text.plain()
        if "mlm" in wanted:
            texts["masked"] = batch.text.masked_copy()
        return texts

    def counts(self, batch: StreamBatch) -> dict[str, Tensor]:
        return {
            "contrastive": batch.valid.sum(),
            "matching": MultiGrainedModel.matching_count(self.examples(batch)),
            "mlm": (batch.text.labels != IGNORE).sum(),
        }

    def trained(self, model: MultiGrainedModel, losses: Collection[str]) -> Iterator[nn.Parameter]:
        parts: list[nn.Module] = [model.text]
        if self.has_images:
            parts.append(model.vision.backbone)
        if "contrastive" in losses:
            yield from model.contrastive.scalars
            parts.append(model.contrastive.text_proj)
            if self.has_images:
                parts.append(model.contrastive.vision_proj)
        if "matching" in losses:
            parts.append(model.matching_head)
        if "mlm" in losses:
            parts.append(model.word_head)
        if needs_fusion(losses):
            parts.append(model.fusion)
        for part in parts:
            yield from part.parameters()

    def examples(self, batch: StreamBatch) -> Examples:
        """The examples of the losses, with their keys."""
        return Examples(batch.valid, batch.text.key, self.same_key)

    @abstractmethod
    def views(self, model: MultiGrainedModel, batch: StreamBatch, encoded: Encoded) -> Views:
        """The two views of each example; the second is None where no loss that aligns them is wanted."""

    def embed(self, model: MultiGrainedModel, batch: StreamBatch, views: Views) -> EmbeddedExamples:
        """The embeddings of both views of each example; the second one is there."""
        (first, second), head = views, model.contrastive
        assert first is not None and second is not None
        embed = head.embed_text(first) if isinstance(first, PackedTexts) else head.embed_image(first)
        return EmbeddedExamples(embed, head.embed_text(second), self.examples(batch))

    def align(self, model: MultiGrainedModel, batch: StreamBatch, views: Views, wanted: Collection[str]) -> Alignment:
        """Start the contrastive loss between two views of each example, and sample hard negatives by their similarity."""
        if not {"contrastive", "matching"} & set(wanted):
            return Alignment()
        embedded = self.embed(model, batch, views)
        return Alignment(
            contrastive=model.contrastive.start_loss(embedded) if "contrastive" in wanted else None,
            negatives=model.hard_negatives(embedded) if "matching" in wanted else None,
        )

    @staticmethod
    def common_passes(
        texts: Mapping[str, PackedTexts], memory: CrossMemory, alignment: Alignment, words: MaskedWords | None
    ) -> Passes:
        """Passes of the masked words, and of the matching loss, for texts that attend to ``memory``. Passes over the same keys
        stand side by side, which makes their attention one call."""
        passes: Passes = {}
        if words is not None:
            passes["mlm"] = [FusionPass(texts["masked"], memory, words.queries)]
        if alignment.negatives is not None:
            passes["matching"] = MultiGrainedModel.matching_passes(texts["plain"], memory, alignment.negatives)
        return passes

    @staticmethod
    def common_losses(
        model: MultiGrainedModel, alignment: Alignment, words: MaskedWords | None, fused: Fused
    ) -> dict[str, Tensor]:
        """The losses that aligned streams have in common, those of them that have been prepared."""
        totals = {}
        if alignment.contrastive is not None:
            totals["contrastive"] = alignment.contrastive()
        if alignment.negatives is not None:
            totals["matching"] = model.matching_loss(fused["matching"], alignment.negatives)
        if words is not None:
            totals["mlm"] = model.word_loss(fused["mlm"][0], words)
        return totals

    def text_flops(self, cost: ModelCost, batch: StreamBatch, tokens: Lengths, wanted: Collection[str]) -> float:
        """FLOPs of the text encoder and of the contrastive loss. Hard negatives, sampled by the same embeddings, have no
        gradient and are not counted."""
        flops = len(self.texts_to_encode(batch, wanted)) * cost.text.run(tokens)
        return flops + (cost.align(len(tokens), len(tokens)) if "contrastive" in wanted else 0)

    @staticmethod
    def fusion_flops(cost: ModelCost, batch: StreamBatch, tokens: Lengths, keys: int, wanted: Collection[str]) -> float:
        """FLOPs of :meth:`common_passes`, and of the heads on them."""
        flops = word_flops(cost, batch, tokens, keys) if "mlm" in wanted else 0.0
        return flops + (cost.match(tokens, keys) if "matching" in wanted else 0)


def needs_fusion(losses: Collection[str]) -> bool:
    """Whether any of the losses needs the fusion."""
    return any(loss != "contrastive" for loss in losses)


def fuse_by_loss(fusion: FusionEncoder, passes: Passes) -> Fused:
    """The passes of all losses in one call of the fusion; the fused states by loss, in the order of its passes."""
    if not passes:
        return {}
    fused = iter(fusion.fuse(list(itertools.chain(*passes.values()))))
    return {loss: [next(fused) for _ in of_loss] for loss, of_loss in passes.items()}


def word_flops(cost: ModelCost, batch: StreamBatch, tokens: Lengths, keys: Lengths | int | None) -> float:
    """FLOPs of the fusion of masked texts, and of the word head."""
    masked = lengths(batch.text.labels != IGNORE, batch.valid)
    return cost.fusion.run(tokens, keys, queries=masked) + cost.head("word_head", int(masked.sum()))
