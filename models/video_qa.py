"""Question answering as classification over candidate answers, for videos (section 4.5, appendix A.1)."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from models.flops import frames_of, lengths
from models.fusion import FusionPass
from models.heads import mlp_head
from models.losses import at_least_float32
from models.xvlm import XVLM, ModelConfig
from utils.batch import IGNORE, ClassifiedBatch, Losses, Term, Text, Work


class VideoQAModelConfig(ModelConfig):
    """The shared model and a classifier."""

    classes: int = Field(ge=2, description="candidate answers: as many as evaluation.answers lists")


class VideoQAModel(XVLM):
    """The question is fused with the video; its [CLS] state is classified."""

    def __init__(self, config: VideoQAModelConfig, vocab_size: int | None = None):
        super().__init__(config, vocab_size)
        self.classifier = mlp_head(self.text.width, config.classes)

    def forward(self, batch: ClassifiedBatch) -> Losses:
        """Cross-entropies of a micro-batch, each times the weight of its answer; their sum. Answers that are no candidates
        teach nothing (as released)."""
        logits = self.classify(batch.pixels, batch.text).index_select(0, batch.question_of_answer)
        each = F.cross_entropy(at_least_float32(logits), batch.labels, ignore_index=IGNORE, reduction="none")
        counts = batch.valid.index_select(0, batch.question_of_answer)
        return {"answers": Term((each * batch.weights).masked_fill(~counts, 0).sum(), 1.0)}

    def counts(self, batch: ClassifiedBatch) -> dict[str, Tensor]:
        """The loss is divided by the valid questions that have a candidate among their answers (as released)."""
        known = torch.zeros(len(batch.valid), dtype=torch.int64, device=batch.valid.device)
        known = known.index_add(0, batch.question_of_answer, (batch.labels != IGNORE).long()) > 0
        return {"answers": (known & batch.valid).sum()}

    def work(self, batch: ClassifiedBatch) -> Work:
        """See :class:`engine.task.TaskModel`."""
        tokens = lengths(batch.text.mask, batch.valid)
        fused = self.cost.fuse_pairs(tokens, frames_of(batch.pixels))
        return fused + Work(flops=self.cost.head("classifier", len(tokens)))

    def classify(
        self,
        pixels: Tensor | None,
        text: Text,
        video_of_question: Tensor | None = None,
    ) -> Tensor:
        """Logits (N, C) of the candidates for N questions.

        ``pixels`` (V, F, 3, H, W) or (V, 3, H, W); None: from the questions alone. ``video_of_question`` (N,) int64, None:
        question n asks about video n.
        """
        (questions,) = self.text([text])
        memory = None if pixels is None else self.fusion.concept_memory(self.vision(pixels))
        if memory is not None and video_of_question is not None:
            memory = memory.select(video_of_question)
        (cls,) = self.fusion.fuse([FusionPass.cls(questions, memory)])
        return self.classifier(cls)
