"""Multi-grained pre-training (section 3.3, eqs. 1-6): every stream's texts and images are encoded in one pass of each encoder,
then each stream makes its losses of them (:mod:`models.streams`). :mod:`models.reference` says the same without packing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from models.blocks import CrossAttention
from models.multigrained import MultiGrainedModel, PretrainModelConfig, zero_loss
from models.streams import (
    AlignedStream,
    Encoded,
    ImageTextStream,
    RegionTextStream,
    Stream,
    TextStream,
    TranslationStream,
    VideoTextStream,
    needs_fusion,
)
from utils.batch import Losses, PretrainBatch, Term, Work
from utils.config import Config
from utils.errors import UserError

STREAMS: dict[str, type[Stream]] = {
    "images": ImageTextStream,
    "videos": VideoTextStream,
    "regions": RegionTextStream,
    "texts": TextStream,
    "pairs": TranslationStream,
}
"""Streams by their names in configs, batches and losses; negatives are drawn in this order."""


class LossWeights(Config):
    """Weights of the losses in equation 6; in the paper all are 1. A loss of weight 0 is not computed."""

    contrastive: float = Field(1.0, ge=0)
    matching: float = Field(1.0, ge=0)
    mlm: float = Field(1.0, ge=0)
    l1: float = Field(1.0, ge=0)
    giou: float = Field(1.0, ge=0)
    whole_image_boxes: bool = Field(False, description="learn boxes from whole-image rows too, (0.5, 0.5, 1, 1)")


class StreamWeights(Config):
    """Factor of each stream's losses; None: the run does not have the stream."""

    images: float | None = 1.0
    regions: float | None = 1.0
    texts: float | None = None
    pairs: float | None = None
    videos: float | None = None


class StreamStep(NamedTuple):
    """A stream, its part of a micro-batch, and the losses that are ``wanted`` of it: some steps have no matching loss."""

    stream: Stream
    part: Any
    wanted: list[str]


class PretrainModel(MultiGrainedModel):
    """``forward(batch)`` gives all losses of all streams in one call."""

    def __init__(
        self,
        config: PretrainModelConfig,
        vocab_size: int | None = None,
        weights: LossWeights | None = None,
        streams: StreamWeights | None = None,
    ):
        super().__init__(config, vocab_size)
        self.streams = build_streams(config, weights or LossWeights(), streams or StreamWeights())
        if "pairs" in self.streams and self.vision.width != self.text.width:
            raise UserError(
                f"data.pairs: the fusion attends to texts as it does to images, but images have width {self.vision.width} "
                f"and texts {self.text.width}; give model.vision and model.fusion one width, or drop data.pairs"
            )
        self._freeze_unused()

    def forward(self, batch: PretrainBatch) -> Losses:
        """All losses of a micro-batch, as sums; divide each by its count (:meth:`counts`), over ranks and micro-batches."""
        self.contrastive.clamp_temperature()
        steps = self._steps(batch)
        terms: Losses = {}
        for step, encoded in zip(steps, self._encode(steps), strict=True):
            stream = step.stream
            sums = stream.losses(self, step.part, encoded, step.wanted) if step.wanted else {}
            for loss, weight in stream.weights.items():
                total = sums[loss] if loss in sums else zero_loss(self._unreached(steps))
                terms[f"{stream.name}/{loss}"] = Term(total, weight)
        return terms

    def _encode(self, steps: Sequence[StreamStep]) -> list[Encoded]:
        """The texts and images of each stream, from one pass of each encoder over those of all."""
        texts = [step.stream.texts_to_encode(step.part, step.wanted) for step in steps]
        flat = [text for of_stream in texts for text in of_stream.values()]
        has_images = [step.stream.has_images and bool(step.wanted) for step in steps]
        pixels = [step.part.pixels for step, has in zip(steps, has_images, strict=True) if has]
        packed = iter(self.text(flat) if flat else [])  # in the order of `steps`, as the concepts
        concepts = iter(self.vision.encode(pixels) if pixels else [])
        return [
            Encoded(next(concepts) if has else None, {name: next(packed) for name in names})
            for has, names in zip(has_images, texts, strict=True)
        ]

    def _unreached(self, steps: Sequence[StreamStep]) -> list[nn.Module]:
        """Modules that train, but have no gradient in a step without matching losses."""
        aligned = [step.wanted for step in steps if isinstance(step.stream, AlignedStream)]
        if not any(aligned):
            return [self]
        fused = any(needs_fusion(wanted) for wanted in aligned)
        return [self.matching_head] if fused else [self.matching_head, self.fusion]

    def counts(self, batch: PretrainBatch) -> dict[str, Tensor]:
        """The divisor of each loss: its examples, pairs, tokens or boxes in this micro-batch. Needs no forward pass."""
        counts: dict[str, Tensor] = {}
        for stream, part, wanted in self._steps(batch):
            of_stream = stream.counts(part)
            for loss in stream.weights:
                count = of_stream[loss]
                counts[f"{stream.name}/{loss}"] = count if loss in wanted else torch.zeros_like(count)
        return counts

    def work(self, batch: PretrainBatch) -> Work:
        """See :class:`engine.task.TaskModel`."""
        return sum((stream.work(self.cost, part, wanted) for stream, part, wanted in self._steps(batch)), Work())

    def _steps(self, batch: PretrainBatch) -> list[StreamStep]:
        """Each stream that has a loss, with its part of the batch and the losses of this step, in the order of the streams."""
        parts = batch.parts()
        assert parts.keys() <= self.streams.keys(), f"the batch has {list(parts)}, the run only {list(self.streams)}"
        steps = []
        for name, stream in self.streams.items():
            if name in parts and stream.weights:
                wanted = [loss for loss in stream.weights if not (loss == "matching" and name in batch.unmatched)]
                steps.append(StreamStep(stream, parts[name], wanted))
        return steps

    def _freeze_unused(self) -> None:
        """Freeze what no loss of the run reaches: it costs nothing, and DDP does not wait for its gradient."""
        streams = [stream for stream in self.streams.values() if stream.weights]
        losses = {loss for stream in streams for loss in stream.weights}
        fused = [stream for stream in streams if needs_fusion(stream.weights)]
        used: dict[nn.Module, bool] = {
            self.contrastive: "contrastive" in losses,
            self.contrastive.vision_proj: any("contrastive" in each.weights and each.has_images for each in streams),
            self.matching_head: "matching" in losses,
            self.word_head: "mlm" in losses,
            self.box_head: bool({"l1", "giou"} & losses),
            self.fusion: bool(fused),
            self.vision: any(stream.has_images for stream in streams),
        }
        if all(isinstance(stream, TextStream) for stream in fused):  # which leaves out the cross-attention
            used |= {attention: False for attention in self.fusion.modules() if isinstance(attention, CrossAttention)}
        for module, is_used in used.items():
            if not is_used:
                module.requires_grad_(False)
        if self.vision.frame_positions is not None and not any(isinstance(each, VideoTextStream) for each in streams):
            self.vision.frame_positions.requires_grad_(False)


def build_streams(config: PretrainModelConfig, weights: LossWeights, factors: StreamWeights) -> dict[str, Stream]:
    """The streams that the run has, by name; a weight is that of the loss times the stream's factor."""
    identical = config.contrastive.identical_texts
    streams: dict[str, Stream] = {}
    for name, kind in STREAMS.items():
        factor = getattr(factors, name)
        if factor is None:
            continue
        own = {loss: factor * getattr(weights, loss) for loss in kind.all_losses}
        if issubclass(kind, RegionTextStream):
            streams[name] = kind(name, own, identical.regions, whole_image_boxes=weights.whole_image_boxes)
        elif issubclass(kind, AlignedStream):
            streams[name] = kind(name, own, getattr(identical, name))
        else:
            streams[name] = kind(name, own)
    return streams
