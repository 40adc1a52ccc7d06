"""The streams of whole images and of videos with their texts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

from torch import Tensor, nn

from models.contrastive import EmbeddedExamples
from models.flops import ModelCost, frames_of, lengths
from models.fusion import FusionQueue
from models.multigrained import MultiGrainedModel
from models.streams.base import AlignedStream, Encoded, aligns, needs_fusion
from utils.batch import ImageTextBatch, VideoTextBatch, Work


class ImageTextStream(AlignedStream[ImageTextBatch | VideoTextBatch]):
    """Images with their texts."""

    def losses(
        self,
        model: MultiGrainedModel,
        batch: ImageTextBatch | VideoTextBatch,
        encoded: Encoded,
        wanted: Collection[str],
    ) -> dict[str, Tensor]:
        images, texts = encoded.images, encoded.texts
        assert images is not None
        queue = FusionQueue(model.fusion)
        started: dict[str, Callable[[], Tensor]] = {}
        if aligns(wanted):
            embedded = self.embed(model, batch, encoded)
        if needs_fusion(wanted):
            memory = model.fusion.concept_memory(images)
        if "contrastive" in wanted:
            started["contrastive"] = model.contrastive.start_loss(embedded)  # eq. 1
        if "mlm" in wanted:
            started["mlm"] = model.start_mlm(queue, texts["masked"], memory, batch.text)  # eq. 3
        if "matching" in wanted:
            started["matching"] = model.start_matching(queue, texts["plain"], memory, embedded)  # eq. 2
        queue.run()
        return {loss: finish() for loss, finish in started.items()}

    def embed(
        self, model: MultiGrainedModel, batch: ImageTextBatch | VideoTextBatch, encoded: Encoded
    ) -> EmbeddedExamples:
        assert encoded.images is not None
        return model.embed_pairs(encoded.images, encoded.texts["plain"], self.examples(batch))

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
