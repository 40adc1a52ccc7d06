"""Video question answering as classification over candidate answers (section 4.5 of the paper, appendix A.1)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from batches.base import IGNORE
from batches.images import Pixels
from batches.losses import Losses, Term, Work
from batches.questions import ClassifiedBatch
from batches.texts import Text
from models.config import VideoQAModelConfig
from models.core.heads import MLPHead
from models.core.losses import at_least_float32
from models.core.packing import select_rows
from models.core.xvlm import XVLM
from models.flops import frames_of, images_of, lengths


class VideoQAModel(XVLM):
    """Answers questions about videos. The fusion encoder fuses question and video, and a classifier reads the fused [CLS]
    state."""

    def __init__(self, config: VideoQAModelConfig, vocab_size: int | None = None):
        super().__init__(config, vocab_size)
        self.classifier = MLPHead(self.text.width, config.classes)

    def forward(self, batch: ClassifiedBatch) -> Losses:
        """Returns the cross-entropy of the answers in a micro-batch, summed with the answers' weights. Answers that are not in
        the list of candidates are ignored (as in the authors' code)."""
        logits = select_rows(self.classify(batch.pixels, batch.text, batch.image_of_question), batch.question_of_answer)
        per_answer = F.cross_entropy(at_least_float32(logits), batch.labels, ignore_index=IGNORE, reduction="none")
        valid = batch.valid.index_select(0, batch.question_of_answer)
        return {"answers": Term((per_answer * batch.weights).masked_fill(~valid, 0).sum(), 1.0)}

    def counts(self, batch: ClassifiedBatch) -> dict[str, Tensor]:
        """Returns the number by which the loss is divided: the number of valid questions with at least one answer in the list of
        candidates (as in the authors' code)."""
        labels = torch.zeros(len(batch.valid), dtype=torch.int64, device=batch.valid.device)
        has_label = labels.index_add(0, batch.question_of_answer, (batch.labels != IGNORE).long()) > 0
        return {"answers": (has_label & batch.valid).sum()}

    def work(self, batch: ClassifiedBatch) -> Work:
        """See :class:`engine.task.TaskModel`."""
        tokens = lengths(batch.text.mask, batch.valid)
        fused = self.cost.fuse_pairs(tokens, frames_of(batch.pixels), images=images_of(batch))
        return fused + Work(flops=self.cost.head("classifier", len(tokens)))

    def classify(
        self,
        pixels: Pixels | None,
        text: Text,
        video_of_question: Tensor | None = None,
    ) -> Tensor:
        """Returns the logits (N, C) of the C candidates for N questions.

        Args:
            pixels: (I, F, 3, H, W) or (I, 3, H, W); if None, the logits depend only on the questions.
            text: N questions.
            video_of_question: (N,) int64, the index of each question's video; if None, question n is about video n.
        """
        return self.classifier(self.fusion.cls(*self.encode(pixels, text, video_of_question)))
