"""The stream of regions, objects and whole images with their texts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

import numpy as np
from torch import Tensor, nn

from models.contrastive import EmbeddedExamples
from models.flops import ModelCost, lengths
from models.fusion import FusionQueue
from models.heads import predict_box
from models.losses import box_giou, box_l1
from models.multigrained import IdenticalTexts, LossWeights, MultiGrainedModel
from models.streams.base import AlignedStream, Encoded, aligns, needs_fusion
from utils.batch import RegionBatch, Work


class RegionTextStream(AlignedStream[RegionBatch]):
    """Regions, objects and whole images with their texts (section 3.2): aligned as images are, by the patches of each region; and
    the box of each text, predicted from the whole image.

    ``whole_image_boxes``: whether texts of whole images have a box to learn.
    """

    all_losses = (*AlignedStream.all_losses, "l1", "giou")

    def __init__(self, name: str, factor: float, weights: LossWeights, identical: IdenticalTexts):
        super().__init__(name, factor, weights, identical)
        self.whole_image_boxes = weights.whole_image_boxes

    def losses(
        self, model: MultiGrainedModel, batch: RegionBatch, encoded: Encoded, wanted: Collection[str]
    ) -> dict[str, Tensor]:
        images, texts = encoded.images, encoded.texts
        assert images is not None
        regions = model.vision.regions(images, batch.patch_mask, batch.image_index)
        queue = FusionQueue(model.fusion)
        started: dict[str, Callable[[], Tensor]] = {}
        if aligns(wanted):
            embedded = model.embed_pairs(regions, texts["plain"], self.examples(batch))
        if needs_fusion(wanted):
            # A text is matched with its region; its box is predicted from the whole image.
            region, whole_image = model.fusion.region_memories(regions, images)
        if "contrastive" in wanted:
            started["contrastive"] = model.contrastive.start_loss(embedded)  # eq. 1
        if learns_boxes(wanted):
            box_states = queue.cls(texts["plain"], whole_image)
        if "mlm" in wanted:
            started["mlm"] = model.start_mlm(queue, texts["masked"], region, batch.text)  # eq. 3
        if "matching" in wanted:
            started["matching"] = model.start_matching(queue, texts["plain"], region, embedded)  # eq. 2
        queue.run()
        totals = {loss: finish() for loss, finish in started.items()}
        if learns_boxes(wanted):
            boxes, has_box = predict_box(model.box_head, box_states()), self.has_box(batch)  # eq. 4
            totals["l1"] = box_l1(boxes, batch.boxes_cxcywh, has_box)  # eq. 5
            totals["giou"] = box_giou(boxes, batch.boxes_cxcywh, has_box)
        return {loss: totals[loss] for loss in wanted}

    def embed(self, model: MultiGrainedModel, batch: RegionBatch, encoded: Encoded) -> EmbeddedExamples:
        assert encoded.images is not None
        regions = model.vision.regions(encoded.images, batch.patch_mask, batch.image_index)
        return model.embed_pairs(regions, encoded.texts["plain"], self.examples(batch))

    def has_box(self, batch: RegionBatch) -> Tensor:
        """The texts whose box is learned, (R,) bool."""
        return batch.valid if self.whole_image_boxes else batch.valid & ~batch.is_image

    def counts(self, batch: RegionBatch) -> dict[str, Tensor]:
        boxes = self.has_box(batch).sum()
        return {**super().counts(batch), "l1": boxes, "giou": boxes}

    def work(self, cost: ModelCost, batch: RegionBatch, wanted: Collection[str]) -> Work:
        tokens = lengths(batch.text.mask, batch.valid)
        regions, keys = len(tokens), cost.vision.keys()
        images = len(np.unique(batch.image_index.numpy()[batch.valid.numpy()]))
        flops: float = cost.vision.encode(images) + cost.vision.pool_regions(regions)
        flops += self.text_flops(cost, batch, tokens, wanted)
        if needs_fusion(wanted):
            # All patches once, the mean of every region, and that of every whole image, from which boxes are predicted.
            flops += cost.fusion.project(images * keys + regions)
            flops += self.fusion_flops(cost, batch, tokens, keys, wanted)
        if learns_boxes(wanted):
            located = lengths(batch.text.mask, self.has_box(batch))
            flops += cost.fusion.run(located, keys, queries=1) + cost.head("box_head", len(located))
        return Work(regions, images, int(tokens.sum()), flops)

    def trained(self, model: MultiGrainedModel, losses: Collection[str]) -> Iterator[nn.Parameter]:
        yield from super().trained(model, losses)
        if learns_boxes(losses):
            yield from model.box_head.parameters()


def learns_boxes(losses: Collection[str]) -> bool:
    """Whether any of the losses is one of boxes."""
    return bool({"l1", "giou"} & set(losses))
