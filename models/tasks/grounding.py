"""Visual grounding: predicts the box or boxes that a phrase refers to (appendix A.1 of the paper)."""

from __future__ import annotations

import torch
from torch import Tensor

from batches.grounding import GroundingBatch
from batches.images import Pixels
from batches.losses import Losses, Term, Work
from batches.texts import Text
from models.config import GroundingModelConfig
from models.core import losses
from models.core.heads import BoxHead
from models.core.packing import PackedTexts
from models.core.set_head import BoxSet, BoxSetHead, box_set_losses
from models.core.vision import Concepts
from models.core.xvlm import XVLM
from models.flops import lengths


class GroundingModel(XVLM):
    """Locates phrases in images. By default, the box head of pre-training (eq. 4) predicts one box from the phrase's [CLS] state,
    fused with the whole image. With ``model.box_set``, a different head predicts a set of boxes instead."""

    def __init__(self, config: GroundingModelConfig, vocab_size: int | None = None):
        super().__init__(config, vocab_size)
        self.set_head: BoxSetHead | None = None
        if config.box_set is None:
            self.box_head = BoxHead(self.text.width)
        else:
            heads, vision = self.fusion.config.heads, self.vision
            self.set_head = BoxSetHead(config.box_set, self.text.width, heads, vision.width, vision.grid)

    def forward(self, batch: GroundingBatch) -> Losses:
        """Returns the L1 and GIoU losses (eq. 5) of a micro-batch, as sums. For sets of boxes, see
        :func:`models.core.set_head.box_set_losses`."""
        if self.set_head is not None:
            found = self.locate_all(batch.pixels, batch.text)
            return box_set_losses(found, batch.boxes_cxcywh, batch.present, batch.valid)
        boxes, true = self.locate(batch.pixels, batch.text), batch.boxes_cxcywh[:, 0]
        return {
            "l1": Term(losses.box_l1(boxes, true, batch.valid), 1.0),
            "giou": Term(losses.box_giou(boxes, true, batch.valid), 1.0),
        }

    def counts(self, batch: GroundingBatch) -> dict[str, Tensor]:
        """Returns the numbers by which the losses are divided: the number of boxes in valid examples and, for sets of boxes, the
        number of valid examples."""
        boxes = (batch.present & batch.valid.unsqueeze(1)).sum()
        counts = {"l1": boxes, "giou": boxes}
        return counts if self.set_head is None else {**counts, "belongs": batch.valid.sum()}

    def work(self, batch: GroundingBatch) -> Work:
        """See :class:`engine.task.TaskModel`."""
        tokens = lengths(batch.text.mask, batch.valid)
        if self.set_head is not None:
            gradients = self.cost.fusion.has_gradients, self.cost.vision.trains
            head = Work(flops=self.set_head.step_flops(tokens, *gradients))
            return self.cost.fuse_pairs(tokens, queries=tokens) + head
        return self.cost.fuse_pairs(tokens) + Work(flops=self.cost.head("box_head", len(tokens)))

    def locate(self, pixels: Pixels, text: Text) -> Tensor:
        """Predicts one box for each of N texts with the published head. ``pixels`` (N, 3, H, W) contains the image of each text.
        Returns boxes (N, 4), as (cx, cy, w, h) in 0..1."""
        return self.box_head(self.fusion.cls(*self.encode(pixels, text)))

    def locate_all(self, pixels: Pixels, text: Text) -> BoxSet:
        """Predicts a set of boxes for each of N texts. ``pixels`` (N, 3, H, W) contains the image of each text."""
        concepts = self.vision(pixels)
        (texts,) = self.text([text])
        return self.box_sets(texts, concepts, torch.arange(len(pixels), device=pixels.device))

    def box_sets(self, texts: PackedTexts, images: Concepts, image_index: Tensor) -> BoxSet:
        """Predicts a set of boxes for each of N encoded texts. Text n is located in image ``image_index[n]``."""
        assert self.set_head is not None, "the model was built without box_set"
        fused = self.fusion.tokens(texts, self.fusion.project_concepts(images).select(image_index))
        return self.set_head(fused, images, image_index)
