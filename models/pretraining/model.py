"""Multi-grained pre-training (section 3.3 of the paper, eqs. 1-6).

A stream is one type of training data, such as image-text pairs or videos. The text encoder and the vision encoder run once for
all streams. Then each stream computes its losses with one call of the fusion encoder (:mod:`models.pretraining.streams`).
:mod:`models.reference` computes the same losses in the simplest way.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from batches import LONG
from batches.losses import Losses, Term, Work
from batches.pretraining import PretrainBatch
from models.config import LossWeights, PretrainModelConfig, StreamWeights
from models.core.blocks import QueryPositions
from models.core.contrastive import ContrastiveHead
from models.core.fusion import FusionPass
from models.core.gradient_cache import spanning
from models.core.heads import BoxHead, WordHead
from models.core.losses import EmbeddedPairs
from models.core.matching import MatchingHead
from models.core.packing import PackedTexts
from models.core.vision import Concepts
from models.core.xvlm import XVLM
from models.pretraining.flops import work_of
from models.pretraining.streams import STREAMS, Encoded, PairStream, Stream
from models.pretraining.trained_parameters import ZeroLoss, freeze_untrained
from utils.errors import UserError


class PretrainModel(XVLM):
    """The encoders and the four heads of section 3.3 of the paper. ``forward(batch)`` computes all losses of all streams."""

    forward_methods = ("embed",)
    """Methods other than ``forward`` that use the parameters; see :mod:`engine.parallel.fsdp`."""

    config: PretrainModelConfig

    def __init__(
        self,
        config: PretrainModelConfig,
        vocab_size: int | None = None,
        weights: LossWeights | None = None,
        streams: StreamWeights | None = None,
    ):
        """``weights`` are the weights of the losses in all streams, and ``streams`` the factors of the streams."""
        super().__init__(config, vocab_size)
        width, (vocabulary, embedded) = self.text.width, self.text.word_embeddings.shape
        own_table = config.word_table == "own"
        if embedded != width and not own_table:
            raise UserError(
                f"tied, but words are embedded in {embedded} dimensions and model.fusion has {width}",
                where="model.word_table",
                remedy="set it to `own`",
            )
        self.contrastive = ContrastiveHead(config, self.vision.width, width)
        self.matching_head = MatchingHead(width)
        self.box_head = BoxHead(width)
        # The word head is part of BERT, so its eps is the text encoder's (as in the authors' code).
        self.word_head = WordHead(width, vocabulary, self.text.block_config.eps, own_table=own_table)
        factors = (streams or StreamWeights()).model_dump()
        all_streams = self._build_streams(config, weights or LossWeights(), factors)
        self.streams = {name: stream for name, stream in all_streams.items() if factors[name] is not None}
        freeze_untrained(self, all_streams.values())
        self._zero_loss = ZeroLoss(self.streams)

    def forward(self, batch: PretrainBatch) -> Losses:
        """Returns all losses of a micro-batch, each summed over its examples. :func:`batches.losses.weighted_sum` combines them
        (eq. 6)."""
        self.contrastive.clamp_temperature()
        requested = self.losses_to_compute(batch)
        encoded = self.encode_streams(batch.by_stream(), requested)
        skipped = self._zero_loss(self, requested)  # replaces the losses that this step does not compute
        terms: Losses = {}
        for stream_name, loss_names in requested.items():
            stream = self.streams[stream_name]
            totals = stream.losses(self, encoded[stream_name], loss_names) if loss_names else {}
            for loss_name, weight in stream.weights.items():
                terms[f"{stream_name}/{loss_name}"] = Term(totals.get(loss_name, skipped), weight)
        return terms

    @property
    def loss_names(self) -> set[str]:
        """Names of the losses that train the model in any stream."""
        return {loss for stream in self.streams.values() for loss in stream.weights}

    def losses_to_compute(self, batch: PretrainBatch) -> dict[str, list[str]]:
        """Returns the names of the losses to compute for a micro-batch, by stream, in the order of the streams. Streams without
        losses are omitted. The list of a stream is empty if its only loss is not computed in this step."""
        batches = batch.by_stream()
        assert batches.keys() <= self.streams.keys(), (
            f"the batch has {list(batches)}, the run only {list(self.streams)}"
        )
        return {
            name: [
                loss_name
                for loss_name in stream.weights
                if loss_name not in batch.not_started
                and not (loss_name == "matching" and stream.images_of in batch.unmatched)
            ]
            for name, stream in self.streams.items()
            if name in batches and stream.weights
        }

    def encode_streams(
        self, batches: Mapping[str, Any], requested: Mapping[str, Collection[str]]
    ) -> dict[str, Encoded[Any]]:
        """Encodes the texts and images of all streams that have losses to compute, in one pass of each encoder.

        Args:
            batches: the batch of each stream.
            requested: names of the losses to compute, as returned by :meth:`losses_to_compute`.
        """
        streams = {name: self.streams[name] for name, loss_names in requested.items() if loss_names}
        texts = {name: stream.texts_to_encode(batches[name], requested[name]) for name, stream in streams.items()}
        pixels = {stream.images_of: batches[name].pixels for name, stream in streams.items() if stream.has_images}
        all_texts = [text for by_kind in texts.values() for text in by_kind.values()]
        encoded_texts = iter(self.text(all_texts) if all_texts else [])
        all_images = dict(zip(pixels, self.vision.encode(list(pixels.values())) if pixels else [], strict=True))
        encoded = {}
        for name, stream in streams.items():
            images = all_images.get(stream.images_of)
            encoded[name] = Encoded(
                batches[name],
                {kind: next(encoded_texts) for kind in texts[name]},
                images,
                None if images is None else stream.concepts(self.vision, batches[name], images),
            )
        return encoded

    def counts(self, batch: PretrainBatch) -> dict[str, Tensor]:
        """Returns the number by which each loss is divided: the number of pairs, words or boxes in this micro-batch. This does
        not need a forward pass."""
        batches = batch.by_stream()
        counts: dict[str, Tensor] = {}
        for name, loss_names in self.losses_to_compute(batch).items():
            for loss in self.streams[name].declared:
                if loss.name in self.streams[name].weights:
                    count = loss.count(batches[name])
                    counts[f"{name}/{loss.name}"] = count if loss.name in loss_names else torch.zeros_like(count)
        return counts

    def work(self, batch: PretrainBatch) -> Work:
        """See :class:`engine.task.TaskModel`."""
        batches, requested = batch.by_stream(), self.losses_to_compute(batch).items()
        works = [
            work_of(
                self.cost,
                self.streams[name],
                batches[name],
                loss_names,
                shares_images=self.streams[name].images_of != name,
            )
            for name, loss_names in requested
            if loss_names
        ]
        return sum(works, Work())

    def compared(self, batch: PretrainBatch) -> list[int]:
        """The number of pairs in each contrastive loss of a micro-batch, in the order of :meth:`embed`."""
        batches = batch.by_stream()
        return [
            len(batches[name].valid) for name, names in self.losses_to_compute(batch).items() if "contrastive" in names
        ]

    def spanning(
        self, micro_batches: Sequence[PretrainBatch], seed: Callable[[int], None]
    ) -> AbstractContextManager[None]:
        """See :class:`engine.task.TaskModel`."""
        return spanning(self.contrastive, self.embed, micro_batches, seed)

    def embed(self, batch: PretrainBatch) -> list[EmbeddedPairs]:
        """The embedded pairs of each contrastive loss, in the order in which the forward pass starts the losses.

        For gradient caching (:mod:`models.core.gradient_cache`), the dropout must draw the same random numbers as in the forward
        pass. Therefore, this method encodes all streams and all their texts, in the same calls with which the forward pass
        begins.
        """
        requested = self.losses_to_compute(batch)
        encoded = self.encode_streams(batch.by_stream(), requested)
        streams = {name: self.streams[name] for name, loss_names in requested.items() if "contrastive" in loss_names}
        return [stream.embed(self, encoded[name]) for name, stream in streams.items() if isinstance(stream, PairStream)]

    def predict_boxes(self, texts: PackedTexts, images: Concepts, image_index: Tensor) -> Tensor:
        """Eq. 4: predicts the box of each of N texts in a whole image.

        Args:
            texts: N encoded texts.
            images: the encoded images.
            image_index: (N,) int64, the index of each text's image.

        Returns:
            Boxes (N, 4), as (cx, cy, w, h) in 0..1.
        """
        return self.box_head(self.fusion.cls(texts, self.fusion.project_concepts(images).select(image_index)))

    def predict_words(self, texts: PackedTexts, images: Concepts, positions: QueryPositions) -> Tensor:
        """Returns the logits (Q, V) of the words at ``positions`` in N texts, in order. The words of text n are predicted from
        text n and image n."""
        (fused,) = self.fusion.fuse([FusionPass(texts, self.fusion.project_concepts(images), positions)])
        return self.word_head(fused, self.text.word_embeddings)

    def _build_streams(
        self, config: PretrainModelConfig, weights: LossWeights, factors: dict[str, float | None]
    ) -> dict[str, Stream[Any]]:
        """Builds all streams, by name. Streams that the run does not use get the factor 0.

        Raises:
            UserError: if the model does not fit the streams of the run.
        """
        if factors["translations"] is not None and self.vision.width != self.text.width:
            raise UserError(
                f"the fusion encoder attends to texts as well as images, but images have width {self.vision.width} "
                f"and texts {self.text.width}",
                where="data.translations",
                remedy="use the same width in model.vision and model.fusion, or remove data.translations",
            )
        same_group = config.contrastive.identical_texts.model_dump()
        return {
            name: stream(name, factors[name] or 0.0, weights, same_group.get(name.removeprefix(LONG), "negative"))
            for name, stream in STREAMS.items()
        }
