"""Aligning (section 3.3): the contrastive loss (eq. 1), and the matching loss with hard negatives (eq. 2), which pre-training and
retrieval share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor

from models import losses
from models.blocks import MOST_WIDTH
from models.contrastive import GREATEST_TEMPERATURE, ContrastiveConfig, ContrastiveHead, EmbeddedExamples, Examples
from models.fusion import FusionQueue
from models.gradient_cache import cached_losses
from models.heads import mlp_head
from models.memory import CrossMemory
from models.negatives import negative_weights, sample
from models.packing import PackedTexts
from models.vision import Concepts
from models.xvlm import XVLM, ModelConfig


class AligningConfig(ModelConfig):
    """Adds the joint space of images and texts, which pre-training and retrieval have."""

    embed_dim: int = Field(256, ge=1, le=MOST_WIDTH, description="width of the contrastive embeddings")
    temperature: float = Field(
        0.07,
        gt=0,
        le=GREATEST_TEMPERATURE,
        description="initial temperature of the contrastive loss; it is learned, and kept within "
        "`contrastive.least_temperature` .. 0.5",
    )
    contrastive: ContrastiveConfig = ContrastiveConfig()

    @model_validator(mode="after")
    def _temperature_is_in_its_range(self) -> AligningConfig:
        if self.temperature < (least := self.contrastive.least_temperature):
            raise ValueError(
                f"temperature is {self.temperature:g}, but contrastive.least_temperature {least:g}; raise it, or lower that"
            )
        return self

    @property
    def chunks(self) -> int:
        return self.contrastive.chunks


@dataclass(frozen=True)
class HardNegatives:
    """Hard negatives of N examples.

    ``image`` (N,) int64: the example whose image (of translations: first text) the text of example n is paired with. ``text``
    (N,) int64: the example whose text its image is paired with. ``exist`` (N,) bool: False where it has none; ``image`` and
    ``text`` are undefined there.
    """

    image: Tensor
    text: Tensor
    exist: Tensor


class AligningModel(XVLM):
    """:class:`~models.xvlm.XVLM` with the contrastive and the matching head."""

    def __init__(self, config: AligningConfig, vocab_size: int | None = None):
        super().__init__(config, vocab_size)
        self.config: AligningConfig = config
        self.contrastive = ContrastiveHead(
            self.vision.width, self.text.width, config.embed_dim, config.temperature, config.contrastive
        )
        self.matching_head = mlp_head(self.text.width, 2)

    def embed(self, batch: Any) -> list[EmbeddedExamples]:
        """The embedded examples of each contrastive loss of a micro-batch. It does what the forward pass begins with."""
        raise NotImplementedError

    def compared(self, batch: Any) -> list[int]:
        """The number of examples in each contrastive loss of a micro-batch, in the order of :meth:`embed`."""
        raise NotImplementedError

    @contextmanager
    def spanning(self, micro_batches: Sequence[Any], before: Callable[[int], None]) -> Iterator[None]:
        """See :meth:`engine.task.TaskModel.spanning`."""
        self.contrastive.clamp_temperature()
        embedded = []
        with torch.no_grad():
            for number, batch in enumerate(micro_batches):
                before(number)
                embedded.append(self.embed(batch))
        with cached_losses(self.contrastive, embedded):
            yield

    @torch.no_grad()
    def hard_negatives(self, embedded: EmbeddedExamples) -> HardNegatives:
        """Negatives within the local batch, sampled by the softmax over similarities of the embeddings."""
        allowed = embedded.examples.allowed_negatives()
        similarity = self.contrastive.similarity(embedded.image, embedded.text)
        return HardNegatives(
            image=self.sample_negatives(similarity.t(), allowed),
            text=self.sample_negatives(similarity, allowed),
            exist=allowed.any(dim=1),
        )

    def sample_negatives(self, similarity: Tensor, allowed: Tensor) -> Tensor:
        """One negative for each example, (N,) int64; see :mod:`models.negatives`."""
        return sample(negative_weights(similarity, allowed))

    def embed_pairs(self, images: Concepts | PackedTexts, texts: PackedTexts, examples: Examples) -> EmbeddedExamples:
        """The embeddings of N images, or of texts in their place, and of their texts."""
        head = self.contrastive
        first = head.embed_text(images) if isinstance(images, PackedTexts) else head.embed_image(images)
        return EmbeddedExamples(first, head.embed_text(texts), examples)

    def start_matching(
        self, queue: FusionQueue, texts: PackedTexts, memory: CrossMemory, embedded: EmbeddedExamples
    ) -> Callable[[], Tensor]:
        """Sample hard negatives, and queue texts and images that match and that do not; the function that is returned gives the
        matching loss once the queue has run.

        Args:
            queue: for texts to be fused.
            texts: N texts.
            memory: what they match, a row for each text.
            embedded: the embeddings of both, by which negatives are sampled.
        """
        negatives = self.hard_negatives(embedded)
        # On a GPU, the sampled texts stay padded, since the host does not know their lengths. The first two passes share their
        # keys with what was queued before; the last one selects other rows.
        fused = [
            queue.cls(texts, memory),
            queue.cls(texts.select(negatives.text), memory),
            queue.cls(texts, memory.select(negatives.image)),
        ]
        return lambda: self.matching_loss([states() for states in fused], negatives)

    def matching_loss(self, fused: Sequence[Tensor], negatives: HardNegatives) -> Tensor:
        """Eq. 2 from fused [CLS] states (N, D) of matched pairs, then of pairs with hard negatives.

        An example without a hard negative is left out altogether: its matched pair alone would only teach to answer "matched".
        """
        logits = self.matching_head(torch.cat(list(fused)))
        matched = torch.arange(len(logits), device=logits.device) < len(negatives.exist)
        return losses.matching(logits, matched, negatives.exist.repeat(len(fused)))

    @staticmethod
    def matching_count(examples: Examples) -> Tensor:
        """The pairs of the matching loss: three for each example that has a negative."""
        if examples.same_key == "negative":  # all valid examples are negatives of each other
            count = examples.valid.sum()
            return 3 * count * (count > 1)
        return 3 * examples.allowed_negatives().any(dim=1).sum()
