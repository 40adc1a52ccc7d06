"""Visual grounding: the box that a phrase refers to (appendix A.1)."""

from __future__ import annotations

from torch import Tensor

from batches.grounding import GroundingBatch
from batches.losses import Losses, Term, Work
from batches.texts import Text
from models.core import losses
from models.core.flops import lengths
from models.core.heads import BoxHead
from models.core.xvlm import XVLM, ModelConfig


class GroundingModel(XVLM):
    """The box head of pre-training (eq. 4) locates a phrase from its [CLS] state, fused with the whole image."""

    def __init__(self, config: ModelConfig, vocab_size: int | None = None):
        super().__init__(config, vocab_size)
        self.box_head = BoxHead(self.text.width)

    def forward(self, batch: GroundingBatch) -> Losses:
        """L1 and GIoU losses (eq. 5) of a micro-batch, as sums."""
        boxes = self.locate(batch.pixels, batch.text)
        return {
            "l1": Term(losses.box_l1(boxes, batch.boxes_cxcywh, batch.valid), 1.0),
            "giou": Term(losses.box_giou(boxes, batch.boxes_cxcywh, batch.valid), 1.0),
        }

    def counts(self, batch: GroundingBatch) -> dict[str, Tensor]:
        """Divisor of both losses: the valid examples."""
        return {"l1": batch.valid.sum(), "giou": batch.valid.sum()}

    def work(self, batch: GroundingBatch) -> Work:
        """See :class:`engine.task.TaskModel`."""
        tokens = lengths(batch.text.mask, batch.valid)
        return self.cost.fuse_pairs(tokens) + Work(flops=self.cost.head("box_head", len(tokens)))

    def locate(self, pixels: Tensor, text: Text) -> Tensor:
        """Boxes (N, 4) of N texts in their images, centre and size in 0..1. ``pixels`` (N, 3, H, W)."""
        return self.box_head(self.fusion.cls(*self.encode(pixels, text)))
