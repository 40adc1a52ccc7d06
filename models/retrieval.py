"""Image-text retrieval: the contrastive loss, in which all captions of an image are positives, and the matching loss (A.1)."""

from __future__ import annotations

import torch
from torch import Tensor

from models.align import AligningModel, Rows
from models.encoded import Encoded
from models.fusion import Look
from utils.batch import Losses, RetrievalBatch, Term


class RetrievalModel(AligningModel):
    """:class:`AligningModel` on pairs; captions of one image are never each other's negatives (as released)."""

    def forward(self, batch: RetrievalBatch) -> Losses:
        """Both losses of a micro-batch, as sums."""
        self.contrastive.clamp_temperature()
        images = self.vision(batch.pixels)
        text = self.text(batch.text.ids, batch.text.mask)
        contrastive, negatives = self.align(images, text, _rows(batch))
        memory = self.fusion.remember(images)
        rows = torch.arange(len(batch.valid), device=batch.valid.device)
        looks = [Look(memory, rows.repeat(2), 2), Look(memory, negatives.image, None)]
        joined = Encoded.concat([text, text.rows(negatives.text), text])
        matched, wrong_text, wrong_image = self.fusion(joined, looks, cls_only=True).split([len(rows)] * 3)
        matching = self.matching_loss(matched, wrong_text, wrong_image, negatives.found)
        return {"contrastive": Term(contrastive, 1.0), "matching": Term(matching, 1.0)}

    def counts(self, batch: RetrievalBatch) -> dict[str, Tensor]:
        """What each loss is divided by: valid rows, and pairs of the matching loss."""
        return {"contrastive": batch.valid.sum(), "matching": self.matching_count(_rows(batch))}


def _rows(batch: RetrievalBatch) -> Rows:
    return Rows(batch.valid, batch.group, "positive")
