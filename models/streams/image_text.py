"""The streams of whole images and of videos with their texts."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from torch import Tensor, nn

from models.flops import ModelCost, frames_of, lengths
from models.multigrained import MaskedWords, MultiGrainedModel
from models.streams.base import AlignedStream, Encoded, Passes, Views, fuse_by_loss, needs_fusion
from utils.batch import ImageTextBatch, VideoTextBatch, Work


class ImageTextStream(AlignedStream):
    """Images with their texts."""

    def views(self, model: MultiGrainedModel, batch: ImageTextBatch | VideoTextBatch, encoded: Encoded) -> Views:
        return encoded.images, encoded.texts.get("plain")

    def losses(
        self,
        model: MultiGrainedModel,
        batch: ImageTextBatch | VideoTextBatch,
        encoded: Encoded,
        wanted: Collection[str],
    ) -> dict[str, Tensor]:
        images, texts = encoded.images, encoded.texts
        assert images is not None
        alignment = self.align(model, batch, self.views(model, batch, encoded), wanted)
        words = MaskedWords.of(batch.text) if "mlm" in wanted else None
        passes: Passes = {}
        if needs_fusion(wanted):
            passes = self.common_passes(texts, model.fusion.concept_memory(images), alignment, words)
        return self.common_losses(model, alignment, words, fuse_by_loss(model.fusion, passes))

    def work(self, cost: ModelCost, batch: ImageTextBatch | VideoTextBatch, wanted: Collection[str]) -> Work:
        tokens, frames = lengths(batch.text.mask, batch.valid), frames_of(batch.pixels)
        examples, keys = len(tokens), cost.vision.keys(frames)
        flops = cost.vision.encode(examples * frames) + self.text_flops(cost, batch, tokens, wanted)
        if needs_fusion(wanted):
            flops += cost.fusion.project(examples * keys) + self.fusion_flops(cost, batch, tokens, keys, wanted)
        return Work(examples, examples * frames, int(tokens.sum()), flops)


class VideoTextStream(ImageTextStream):
    """Videos with their texts: the vision encoder makes one concept of each video, and all else is as for images."""

    def trained(self, model: MultiGrainedModel, losses: Collection[str]) -> Iterator[nn.Parameter]:
        assert model.vision.frame_positions is not None, "a model without videos"
        yield model.vision.frame_positions
        yield from super().trained(model, losses)
