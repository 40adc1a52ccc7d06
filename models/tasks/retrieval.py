"""Image-text retrieval (appendix A.1 of the paper), trained with the matching loss, and with the contrastive loss with all
captions of an image as positives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from batches.losses import Losses, Term, Work
from batches.retrieval import RetrievalBatch
from models.config import AligningConfig
from models.core import losses
from models.core.contrastive import ContrastiveHead
from models.core.gradient_cache import spanning
from models.core.losses import EmbeddedPairs
from models.core.matching import MatchingHead, matching_count
from models.core.packing import PackedTexts
from models.core.vision import Concepts
from models.core.xvlm import XVLM
from models.flops import frames_of, lengths


@dataclass(frozen=True)
class Teacher:
    """The model whose similarities a model shall keep. It is not a submodule, so it is neither trained nor saved.

    Attributes:
        model: the teacher, on the device of the batches, in evaluation mode.
        weight: weight of the loss.
    """

    model: RetrievalModel
    weight: float

    @torch.no_grad()
    def similarity(self, batch: RetrievalBatch) -> Tensor:
        """The similarities (N, N) of the images and the texts of a batch, divided by the temperature."""
        (pairs,) = self.model.embed(batch)
        return self.model.contrastive.similarity(pairs.image, pairs.text)


class RetrievalModel(XVLM):
    """The contrastive head and the matching head of pre-training, applied to image-text pairs.

    Captions of one image are never each other's negatives (as in the authors' code).
    """

    forward_methods = ("embed",)
    """Methods other than ``forward`` that use the parameters; see :mod:`engine.parallel.fsdp`."""

    config: AligningConfig

    teacher: Teacher | None = None
    """If set, ``forward`` also returns the loss of the distillation to its similarities."""

    def __init__(self, config: AligningConfig, vocab_size: int | None = None):
        super().__init__(config, vocab_size)
        self.contrastive = ContrastiveHead(config, self.vision.width, self.text.width)
        self.matching_head = MatchingHead(self.text.width)

    def forward(self, batch: RetrievalBatch) -> Losses:
        """Returns the contrastive and the matching loss of a micro-batch, and the loss of the distillation, as sums."""
        self.contrastive.clamp_temperature()
        images, texts = self._encode(batch)
        pairs = self._embed(batch, images, texts)
        contrastive = self.contrastive.start_loss(pairs)  # eq. 1
        keys_values = self.fusion.project_concepts(images)
        passes, has_negatives = self.matching_head.pair_with_negatives(texts, keys_values, pairs, self.contrastive)
        matching = self.matching_head.loss(self.fusion.fuse(passes), has_negatives)  # eq. 2
        found = {"contrastive": Term(contrastive(), 1.0), "matching": Term(matching, 1.0)}
        if self.teacher is not None:
            own = self.contrastive.similarity(pairs.image, pairs.text)
            kept = losses.distillation(own, self.teacher.similarity(batch), batch.valid)
            found["distillation"] = Term(kept, self.teacher.weight)
        return found

    def compared(self, batch: RetrievalBatch) -> list[int]:
        """The number of pairs in each contrastive loss of a micro-batch."""
        return [len(batch.valid)]

    def spanning(
        self, micro_batches: Sequence[RetrievalBatch], seed: Callable[[int], None]
    ) -> AbstractContextManager[None]:
        """See :class:`engine.task.TaskModel`."""
        return spanning(self.contrastive, self.embed, micro_batches, seed)

    def embed(self, batch: RetrievalBatch) -> list[EmbeddedPairs]:
        """The embedded pairs for the contrastive loss. The forward pass begins with the same computation."""
        return [self._embed(batch, *self._encode(batch))]

    def counts(self, batch: RetrievalBatch) -> dict[str, Tensor]:
        """Returns the numbers by which the losses are divided: the number of valid pairs, and the number of pairs that the
        matching loss classifies."""
        pairs = batch.valid.sum()
        numbers = {"contrastive": pairs, "matching": matching_count(batch.valid, batch.group, "positive")}
        return numbers if self.teacher is None else numbers | {"distillation": pairs}

    def work(self, batch: RetrievalBatch) -> Work:
        """See :class:`engine.task.TaskModel`."""
        tokens, frames = lengths(batch.text.mask, batch.valid), frames_of(batch.pixels)
        pairs, keys = len(tokens), self.cost.vision.keys(frames)
        embed = self.cost.vision.encode(pairs * frames) + self.cost.encode_texts(tokens)
        flops = embed if self.teacher is None else embed * 4 / 3  # the teacher has no backward pass
        flops += self.cost.align(pairs, pairs)
        flops += self.cost.fusion.project(pairs * keys) + self.cost.match(tokens, keys)
        return Work(pairs, pairs * frames, int(tokens.sum()), flops)

    def _encode(self, batch: RetrievalBatch) -> tuple[Concepts, PackedTexts]:
        images, (texts,) = self.vision(batch.pixels), self.text([batch.text])
        return images, texts

    def _embed(self, batch: RetrievalBatch, images: Concepts, texts: PackedTexts) -> EmbeddedPairs:
        return self.contrastive.embed_pairs(images, texts, batch.valid, batch.group, "positive")
