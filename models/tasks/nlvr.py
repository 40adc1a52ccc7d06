"""Visual reasoning: is a statement true of two images (appendix A.1 of the paper), or does an image entail it?"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from batches.images import Pixels
from batches.losses import Losses, Term, Work
from batches.nlvr import StatementBatch
from batches.texts import Text
from models.config import NLVRModelConfig
from models.core.fusion import FusionPass
from models.core.heads import MLPHead
from models.core.losses import at_least_float32
from models.core.xvlm import XVLM
from models.flops import lengths


class NLVRModel(XVLM):
    """Classifies statements about images. The fusion encoder fuses a statement with each of its images separately, and a
    classifier reads the concatenated [CLS] states."""

    def __init__(self, config: NLVRModelConfig, vocab_size: int | None = None):
        super().__init__(config, vocab_size)
        self.images = config.images
        self.classifier = MLPHead(config.images * self.text.width, config.classes)

    def forward(self, batch: StatementBatch) -> Losses:
        """Returns the cross-entropy of a micro-batch, as a sum."""
        logits = self.classify(batch.pixels, batch.text)
        per_example = F.cross_entropy(at_least_float32(logits), batch.label, reduction="none")
        return {"classes": Term(per_example.masked_fill(~batch.valid, 0).sum(), 1.0)}

    def counts(self, batch: StatementBatch) -> dict[str, Tensor]:
        """Returns the number by which the loss is divided: the number of valid examples."""
        return {"classes": batch.valid.sum()}

    def work(self, batch: StatementBatch) -> Work:
        """See :class:`engine.task.TaskModel`."""
        tokens = lengths(batch.text.mask, batch.valid)
        statements, keys = len(tokens), self.cost.vision.keys()
        images = statements * self.images
        flops = (
            self.cost.vision.encode(images) + self.cost.encode_texts(tokens) + self.cost.fusion.project(images * keys)
        )
        flops += self.images * self.cost.fusion.run(tokens, keys, queries=1) + self.cost.head("classifier", statements)
        return Work(statements, images, int(tokens.sum()), flops)

    def classify(self, pixels: Pixels, text: Text) -> Tensor:
        """Returns the logits (N, C) of the classes of N statements.

        ``pixels`` (images * N, 3, H, W) contains all first (left) images, then all second (right) images.
        """
        keys_values, (statements,) = self.fusion.project_concepts(self.vision(pixels)), self.text([text])
        by_image = keys_values.split([len(text.ids)] * self.images)
        fused = self.fusion.fuse([FusionPass.cls(statements, images) for images in by_image])
        return self.classifier(torch.cat(fused, dim=1))
