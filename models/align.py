"""What pre-training and retrieval share: contrastive and matching losses with hard negatives (section 3.3, eqs. 1 and 2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models import losses
from models.encoded import Concepts, Encoded
from models.fusion import At, ImageMemory, Look, Part
from models.heads import mlp_head
from models.negatives import allowed_negatives, draw, negative_weights
from models.xvlm import XVLM, AligningConfig, ContrastiveHead


@dataclass(frozen=True)
class Rows:
    """Which rows of a batch count, ``valid`` (N,) bool; ``key`` (N,) int64, equal for rows that are not to be told apart;
    ``same_key``: what such rows are to each other in the contrastive loss."""

    valid: Tensor
    key: Tensor
    same_key: losses.SameKey

    def allowed_negatives(self) -> Tensor:
        """Which rows may serve as each other's negatives in the matching loss, (N, N) bool."""
        return allowed_negatives(self.valid, None if self.same_key == "negative" else self.key)


@dataclass(frozen=True)
class Negatives:
    """Hard negatives of N rows: which row's image text i gets, which row's text image i gets, and which rows have any."""

    image: Tensor
    text: Tensor
    found: Tensor


class AligningModel(XVLM):
    """:class:`XVLM` with the contrastive and the matching head."""

    def __init__(self, config: AligningConfig, vocab_size: int | None = None):
        super().__init__(config, vocab_size)
        self.config: AligningConfig = config
        self.contrastive = ContrastiveHead(self.vision.width, self.text.width, config)
        self.matching_head = mlp_head(self.text.width, 2)

    def match(self, text: Encoded, memory: ImageMemory, rows: Tensor, texts_per_image: int | None) -> Tensor:
        """Matching logits (N, 2) of texts with the memory rows they look at; column 1 = matched (eq. 2)."""
        return self.matching_head(self.fusion(text, Look(memory, rows, texts_per_image), cls_only=True).cls)

    def align(self, concepts: Concepts, text: Encoded, rows: Rows) -> tuple[Callable[[], Tensor], Negatives]:
        """The contrastive loss, to be called for where other work has been started (the rows of other ranks are under way), and
        hard negatives drawn from its similarities within the local batch."""
        return self._align(self.contrastive.embed_image(concepts), self.contrastive.embed_text(text), rows)

    def align_texts(self, first: Encoded, second: Encoded, rows: Rows) -> tuple[Callable[[], Tensor], Negatives]:
        """The same with a text in the place of each image."""
        return self._align(self.contrastive.embed_text(first), self.contrastive.embed_text(second), rows)

    def _align(self, image_embed: Tensor, text_embed: Tensor, rows: Rows) -> tuple[Callable[[], Tensor], Negatives]:
        head = self.contrastive
        loss = head.start_loss(image_embed, text_embed, rows.valid, rows.key, rows.same_key)
        with torch.no_grad():
            allowed = rows.allowed_negatives()
            similarity = head.similarity(image_embed, text_embed)
            negatives = Negatives(
                image=self.draw_negatives(similarity.t(), allowed),
                text=self.draw_negatives(similarity, allowed),
                found=allowed.any(dim=1),
            )
        return loss, negatives

    def draw_negatives(self, similarity: Tensor, allowed: Tensor) -> Tensor:
        """One negative per row, (N,); see :mod:`models.negatives`."""
        return draw(negative_weights(similarity, allowed))

    @staticmethod
    def matching_parts(text: Encoded, memory: ImageMemory, texts_per_image: int, negatives: Negatives) -> list[Part]:
        """What the matching loss asks of the fusion: texts with their own rows of the memory, these with a wrong text, texts with
        a wrong row; of each only [CLS]. No image has more than ``texts_per_image`` rows."""
        rows = torch.arange(len(text.states), device=text.states.device)
        cls = At.cls(rows)
        return [
            Part(text, Look(memory, rows, texts_per_image), cls),
            Part(text.rows(negatives.text), Look(memory, rows, texts_per_image), cls),
            Part(text, Look(memory, negatives.image, None), cls),
        ]

    def matching_loss(self, fused: Sequence[Encoded], found: Tensor) -> Tensor:
        """Eq. 2 on what the fusion has made of :meth:`matching_parts`, of which the first are matched.

        A row without any allowed negative, ``found``, stays out altogether: alone, it would only teach to answer "matched".
        """
        logits = self.matching_head(torch.cat([part.cls for part in fused]))
        truth = torch.arange(len(logits), device=logits.device) < len(found)
        return losses.matching(logits, truth, found.repeat(len(fused)))

    @staticmethod
    def matching_count(rows: Rows) -> Tensor:
        """The pairs of the matching loss: three for each row that has a negative."""
        if rows.same_key == "negative":  # every row that counts is one of the others
            count = rows.valid.sum()
            return 3 * count * (count > 1)
        return 3 * rows.allowed_negatives().any(dim=1).sum()
