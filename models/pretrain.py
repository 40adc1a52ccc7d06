"""Multi-grained pre-training (section 3.3, eqs. 1-6).

The text encoder and the vision encoder run once for all streams, then the fusion encoder once for each stream, which computes
its losses from the fused states (:mod:`models.streams`). :mod:`models.reference` says the same without packing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from models.contrastive import EmbeddedExamples
from models.multigrained import LossWeights, MultiGrainedModel, PretrainModelConfig, StreamWeights, zero_loss
from models.streams.base import AlignedStream, Encoded, Stream
from models.streams.image_text import ImageTextStream, VideoTextStream
from models.streams.region_text import RegionTextStream
from models.streams.text import TextStream
from models.streams.translation import TranslationStream
from utils.batch import Losses, PretrainBatch, Term, Work
from utils.errors import UserError

STREAMS: dict[str, type[Stream[Any]]] = {
    "images": ImageTextStream,
    "videos": VideoTextStream,
    "regions": RegionTextStream,
    "texts": TextStream,
    "translations": TranslationStream,
}
"""Streams by their names in configs, batches and losses; hard negatives are sampled in this order, and so repeat with a seed."""


class StreamStep(NamedTuple):
    """A stream, its batch, and the losses that are ``wanted`` of it: some steps have no matching loss."""

    stream: Stream[Any]
    batch: Any
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
        if "translations" in self.streams and self.vision.width != self.text.width:
            raise UserError(
                f"data.translations: the fusion attends to texts as it does to images, but images have width {self.vision.width} "
                f"and texts {self.text.width}; give model.vision and model.fusion one width, or drop data.translations"
            )
        self._untrained: dict[tuple[tuple[str, ...], ...], list[nn.Parameter]] = {}
        """See :meth:`_untrained_by`; by the losses of a step, since to walk through a model takes the host milliseconds."""
        self._freeze_unused()

    def forward(self, batch: PretrainBatch) -> Losses:
        """All losses of a micro-batch, as sums; divide each by its count (:meth:`counts`), over ranks and micro-batches."""
        self.contrastive.clamp_temperature()
        steps = self._steps(batch)
        no_loss = zero_loss(self._untrained_by(steps), self.contrastive.temperature.device)
        terms: Losses = {}
        for (stream, of_stream, wanted), encoded in zip(steps, self._encode(steps), strict=True):
            totals = stream.losses(self, of_stream, encoded, wanted) if wanted else {}
            for loss, weight in stream.weights.items():
                terms[f"{stream.name}/{loss}"] = Term(totals[loss] if loss in wanted else no_loss, weight)
        return terms

    def embed(self, batch: PretrainBatch) -> list[EmbeddedExamples]:
        """See :class:`~models.align.AligningModel`."""
        steps = self._steps(batch)
        return [
            stream.embed(self, of_stream, encoded)
            for (stream, of_stream, wanted), encoded in zip(steps, self._encode(steps), strict=True)
            if isinstance(stream, AlignedStream) and "contrastive" in wanted
        ]

    def compared(self, batch: PretrainBatch) -> list[int]:
        """See :class:`~models.align.AligningModel`."""
        return [len(step.batch.valid) for step in self._steps(batch) if "contrastive" in step.wanted]

    def _encode(self, steps: Sequence[StreamStep]) -> list[Encoded]:
        """The texts and images of each stream, from one pass of each encoder over those of all."""
        texts = [step.stream.texts_to_encode(step.batch, step.wanted) for step in steps]
        all_texts = [text for of_stream in texts for text in of_stream.values()]
        has_images = [step.stream.has_images and bool(step.wanted) for step in steps]
        pixels = [step.batch.pixels for step, has in zip(steps, has_images, strict=True) if has]
        packed = iter(self.text(all_texts) if all_texts else [])  # in the order of `steps`, as the images
        images = iter(self.vision.encode(pixels) if pixels else [])
        return [
            Encoded(next(images) if has else None, {name: next(packed) for name in of_stream})
            for has, of_stream in zip(has_images, texts, strict=True)
        ]

    def _untrained_by(self, steps: Sequence[StreamStep]) -> list[nn.Parameter]:
        """The parameters that only losses left out of this step train."""
        key = tuple((step.stream.name, *step.wanted) for step in steps)
        if key not in self._untrained:
            left_out = [step for step in steps if len(step.wanted) < len(step.stream.weights)]
            trained = {id(p) for step in steps if step.wanted for p in step.stream.trained(self, step.wanted)}
            parameters = {id(p): p for step in left_out for p in step.stream.trained(self, step.stream.weights)}
            self._untrained[key] = [parameter for number, parameter in parameters.items() if number not in trained]
        return self._untrained[key]

    def counts(self, batch: PretrainBatch) -> dict[str, Tensor]:
        """The divisor of each loss: its examples, pairs, tokens or boxes in this micro-batch. Needs no forward pass."""
        counts: dict[str, Tensor] = {}
        for stream, of_stream, wanted in self._steps(batch):
            by_loss = stream.counts(of_stream)
            for loss in stream.weights:
                count = by_loss[loss]
                counts[f"{stream.name}/{loss}"] = count if loss in wanted else torch.zeros_like(count)
        return counts

    def work(self, batch: PretrainBatch) -> Work:
        """See :class:`engine.task.TaskModel`."""
        steps = [step for step in self._steps(batch) if step.wanted]
        return sum((step.stream.work(self.cost, step.batch, step.wanted) for step in steps), Work())

    def _steps(self, batch: PretrainBatch) -> list[StreamStep]:
        """Each stream that has a loss, with its batch and the losses of this step, in the order of the streams."""
        batches = batch.streams()
        assert batches.keys() <= self.streams.keys(), (
            f"the batch has {list(batches)}, the run only {list(self.streams)}"
        )
        steps = []
        for name, stream in self.streams.items():
            if name in batches and stream.weights:
                wanted = [loss for loss in stream.weights if not (loss == "matching" and name in batch.unmatched)]
                steps.append(StreamStep(stream, batches[name], wanted))
        return steps

    def _freeze_unused(self) -> None:
        """Freeze the parameters that no loss of the run trains: they cost nothing, and DDP does not wait for their gradients."""
        streams = [stream for stream in self.streams.values() if stream.weights]
        trained = {id(parameter) for stream in streams for parameter in stream.trained(self, stream.weights)}
        for parameter in self.parameters():
            if id(parameter) not in trained:
                parameter.requires_grad_(False)


def build_streams(config: PretrainModelConfig, weights: LossWeights, factors: StreamWeights) -> dict[str, Stream[Any]]:
    """The streams that the run has, by name."""
    by_name = {name: getattr(factors, name) for name in STREAMS}
    return {
        name: STREAMS[name](name, factor, weights, config.contrastive.identical_texts)
        for name, factor in by_name.items()
        if factor is not None
    }
