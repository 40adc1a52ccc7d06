"""Visual reasoning: is a statement true of two images? (appendix A.1)"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from models.fusion import Look
from models.heads import mlp_head
from models.xvlm import XVLM, ModelConfig
from utils.batch import Losses, PairBatch, Term, Text


class NLVRModel(XVLM):
    """The statement is fused with each image; both [CLS] states together are classified as false or true."""

    def __init__(self, config: ModelConfig, vocab_size: int | None = None):
        super().__init__(config, vocab_size)
        self.classifier = mlp_head(2 * self.text.width, 2)

    def forward(self, batch: PairBatch) -> Losses:
        """The cross-entropy of a micro-batch, as a sum."""
        logits = self.classify(batch.pixels, batch.text)
        rows = F.cross_entropy(logits.float(), batch.label, reduction="none")
        return {"classes": Term(rows.masked_fill(~batch.valid, 0).sum(), 1.0)}

    def counts(self, batch: PairBatch) -> dict[str, Tensor]:
        """What the loss is divided by: the valid rows."""
        return {"classes": batch.valid.sum()}

    def classify(self, pixels: Tensor, text: Text) -> Tensor:
        """Logits (N, 2) of false and true. ``pixels`` (2N, 3, H, W): all left images, then all right ones; N texts."""
        statements = self.text(text.ids, text.mask)
        rows = torch.arange(len(text.ids), device=text.ids.device)
        look = Look(self.fusion.remember(self.vision(pixels)), torch.cat([rows, rows + len(rows)]), 1)
        left, right = self.fusion(statements.rows(rows.repeat(2)), [look], cls_only=True).cls.chunk(2)
        return self.classifier(torch.cat([left, right], dim=1))
