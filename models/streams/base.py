"""What streams have in common: :class:`Stream`, and :class:`AlignedStream` for all that align two views of each example."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

from torch import Tensor, nn

from models.contrastive import EmbeddedExamples, Examples
from models.flops import Lengths, ModelCost, lengths
from models.multigrained import Identical, IdenticalTexts, LossWeights, MultiGrainedModel
from models.packing import PackedTexts
from models.vision import Concepts
from utils.batch import (
    IGNORE,
    ImageTextBatch,
    MaskedText,
    RegionBatch,
    Text,
    TextBatch,
    TranslationBatch,
    VideoTextBatch,
    Work,
)

B = TypeVar("B", bound=ImageTextBatch | VideoTextBatch | RegionBatch | TranslationBatch | TextBatch)
"""The batch of a stream."""

A = TypeVar("A", bound=ImageTextBatch | VideoTextBatch | RegionBatch | TranslationBatch)
"""The batch of a stream whose examples have two views."""


@dataclass(frozen=True)
class Encoded:
    """A stream's batch after the encoders: its whole images or videos, None if it has none, and its texts by name."""

    images: Concepts | None
    texts: Mapping[str, PackedTexts]


class Stream(ABC, Generic[B]):
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
    def texts_to_encode(self, batch: B, wanted: Collection[str]) -> dict[str, Text]:
        """The texts to encode for the ``wanted`` losses, by name."""

    @abstractmethod
    def losses(
        self, model: MultiGrainedModel, batch: B, encoded: Encoded, wanted: Collection[str]
    ) -> dict[str, Tensor]:
        """The ``wanted`` losses of a micro-batch, as sums over what :meth:`counts` counts."""

    @abstractmethod
    def counts(self, batch: B) -> dict[str, Tensor]:
        """The divisor of each loss: the examples, pairs, tokens or boxes that count."""

    @abstractmethod
    def work(self, cost: ModelCost, batch: B, wanted: Collection[str]) -> Work:
        """Examples, images, tokens and FLOPs (:mod:`models.flops`) of a batch in the host's memory."""

    @abstractmethod
    def trained(self, model: MultiGrainedModel, losses: Collection[str]) -> Iterator[nn.Parameter]:
        """The parameters for which ``losses`` of the stream, at least one, have gradients."""


class AlignedStream(Stream[A]):
    """Two views of each example, aligned by the contrastive and the matching loss; masked words, predicted with the other view.

    ``same_key``: the role of examples with equal texts for each other.
    """

    all_losses: ClassVar[tuple[str, ...]] = ("contrastive", "matching", "mlm")

    def __init__(self, name: str, factor: float, weights: LossWeights, identical: IdenticalTexts):
        super().__init__(name, factor, weights, identical)
        self.same_key: Identical = getattr(identical, name)

    def texts_to_encode(self, batch: A, wanted: Collection[str]) -> dict[str, Text]:
        texts = {}
        if any(loss != "mlm" for loss in wanted):
            texts["plain"] = batch.text.plain()
        if "mlm" in wanted:
            texts["masked"] = batch.text.masked_copy()
        return texts

    def counts(self, batch: A) -> dict[str, Tensor]:
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

    def examples(self, batch: A) -> Examples:
        """The examples of the losses, with their keys."""
        return Examples(batch.valid, batch.text.key, self.same_key)

    @abstractmethod
    def embed(self, model: MultiGrainedModel, batch: A, encoded: Encoded) -> EmbeddedExamples:
        """The embeddings of both views of each example."""

    def text_flops(self, cost: ModelCost, batch: A, tokens: Lengths, wanted: Collection[str]) -> float:
        """FLOPs of the text encoder and of the contrastive loss. Hard negatives, sampled by the same embeddings, have no
        gradient and are not counted."""
        flops = len(self.texts_to_encode(batch, wanted)) * cost.text.run(tokens)
        return flops + (cost.align(len(tokens), len(tokens)) if "contrastive" in wanted else 0)

    def fusion_flops(self, cost: ModelCost, batch: A, tokens: Lengths, keys: int, wanted: Collection[str]) -> float:
        """FLOPs of the fusion and the heads for the matching loss and the masked words."""
        flops = word_flops(cost, batch.text, batch.valid, tokens, keys) if "mlm" in wanted else 0.0
        return flops + (cost.match(tokens, keys) if "matching" in wanted else 0)


def needs_fusion(losses: Collection[str]) -> bool:
    """Whether any of the losses needs the fusion."""
    return any(loss != "contrastive" for loss in losses)


def aligns(losses: Collection[str]) -> bool:
    """Whether any of the losses compares embeddings: hard negatives are sampled by their similarity."""
    return any(loss in ("contrastive", "matching") for loss in losses)


def word_flops(cost: ModelCost, text: MaskedText, valid: Tensor, tokens: Lengths, keys: Lengths | int | None) -> float:
    """FLOPs of the fusion of masked texts, and of the word head."""
    masked = lengths(text.labels != IGNORE, valid)
    return cost.fusion.run(tokens, keys, queries=masked) + cost.head("word_head", int(masked.sum()))
