"""Image-text retrieval (A.1): the matching loss, and the contrastive loss with all captions of an image as positives."""

from __future__ import annotations

from torch import Tensor

from models.align import AligningModel
from models.contrastive import EmbeddedExamples, Examples
from models.flops import frames_of, lengths
from models.fusion import FusionQueue
from models.packing import PackedTexts
from models.vision import Concepts
from utils.batch import Losses, RetrievalBatch, Term, Work


class RetrievalModel(AligningModel):
    """:class:`~models.align.AligningModel` on image-text pairs.

    Captions of one image are never each other's negatives (as released).
    """

    def forward(self, batch: RetrievalBatch) -> Losses:
        """The contrastive and the matching loss of a micro-batch, as sums."""
        self.contrastive.clamp_temperature()
        images, texts = self._encode(batch)
        queue = FusionQueue(self.fusion)
        embedded = self.embed_pairs(images, texts, _examples(batch))
        contrastive = self.contrastive.start_loss(embedded)
        matching = self.start_matching(queue, texts, self.fusion.concept_memory(images), embedded)
        queue.run()
        return {"contrastive": Term(contrastive(), 1.0), "matching": Term(matching(), 1.0)}

    def embed(self, batch: RetrievalBatch) -> list[EmbeddedExamples]:
        """See :class:`~models.align.AligningModel`."""
        return [self.embed_pairs(*self._encode(batch), _examples(batch))]

    def compared(self, batch: RetrievalBatch) -> list[int]:
        """See :class:`~models.align.AligningModel`."""
        return [len(batch.valid)]

    def _encode(self, batch: RetrievalBatch) -> tuple[Concepts, PackedTexts]:
        images, (texts,) = self.vision(batch.pixels), self.text([batch.text])
        return images, texts

    def counts(self, batch: RetrievalBatch) -> dict[str, Tensor]:
        """Divisors of the losses: the valid examples, and the pairs of the matching loss."""
        return {"contrastive": batch.valid.sum(), "matching": self.matching_count(_examples(batch))}

    def work(self, batch: RetrievalBatch) -> Work:
        """See :class:`engine.task.TaskModel`."""
        tokens, frames = lengths(batch.text.mask, batch.valid), frames_of(batch.pixels)
        pairs, keys = len(tokens), self.cost.vision.keys(frames)
        flops = self.cost.vision.encode(pairs * frames) + self.cost.text.run(tokens) + self.cost.align(pairs, pairs)
        flops += self.cost.fusion.project(pairs * keys) + self.cost.match(tokens, keys)
        return Work(pairs, pairs * frames, int(tokens.sum()), flops)


def _examples(batch: RetrievalBatch) -> Examples:
    return Examples(batch.valid, batch.group, "positive")
