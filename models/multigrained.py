"""The model of multi-grained pre-training: encoders and every head (section 3.3), and the weights of its losses, which
:mod:`models.streams` makes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from models import losses
from models.align import AligningConfig, AligningModel
from models.blocks import QueryPositions
from models.contrastive import ContrastiveConfig
from models.fusion import FusionPass, FusionQueue
from models.heads import WordHead, mlp_head, predict_box
from models.memory import CrossMemory
from models.packing import PackedTexts, Packing
from models.vision import Concepts
from utils.batch import IGNORE, MaskedText
from utils.config import Config
from utils.errors import UserError

Identical = Literal["ignore", "negative"]


class LossWeights(Config):
    """Weights of the losses in equation 6; in the paper all are 1. A loss of weight 0 is not computed."""

    contrastive: float = Field(1.0, ge=0, description="weight of the contrastive loss (paper, equation 1)")
    matching: float = Field(1.0, ge=0, description="weight of the matching loss (paper, equation 2)")
    mlm: float = Field(1.0, ge=0, description="weight of the loss on masked words (paper, equation 3)")
    l1: float = Field(1.0, ge=0, description="weight of the boxes' L1 loss (paper, equation 5)")
    giou: float = Field(1.0, ge=0, description="weight of the boxes' GIoU loss (paper, equation 5)")
    whole_image_boxes: bool = Field(
        False, description="captions of whole images have box losses too; their box is (0.5, 0.5, 1, 1)"
    )


class StreamWeights(Config):
    """Factor of each stream's losses; None: the run does not have the stream."""

    images: float | None = 1.0
    regions: float | None = 1.0
    texts: float | None = None
    translations: float | None = None
    videos: float | None = None


class IdenticalTexts(Config):
    """The role of equal texts of a batch for each other, by stream."""

    images: Identical = Field(
        "negative", description="examples with equal texts are each other's negatives (negative), or are not (ignore)"
    )
    videos: Identical = Field(
        "negative", description="examples with equal texts are each other's negatives (negative), or are not (ignore)"
    )
    translations: Identical = Field(
        "negative", description="examples with equal texts are each other's negatives (negative), or are not (ignore)"
    )
    regions: Identical = Field(
        "ignore",
        description="regions with equal texts, such as 'a man', are each other's negatives (negative), or are not (ignore)",
    )


class PretrainContrastiveConfig(ContrastiveConfig):
    """The contrastive loss of pre-training, where texts can be equal."""

    identical_texts: IdenticalTexts = IdenticalTexts()

    @field_validator("identical_texts", mode="before")
    @classmethod
    def _one_word_for_all(cls, value: Any) -> Any:
        return dict.fromkeys(IdenticalTexts.model_fields, value) if isinstance(value, str) else value


class PretrainModelConfig(AligningConfig):
    """The model of pre-training."""

    contrastive: PretrainContrastiveConfig = PretrainContrastiveConfig()
    word_table: Literal["tied", "own"] = Field(
        "tied",
        description="word table of the word head. tied: that of the word embeddings, as in BERT; own: a table apart, "
        "as released for XLM-R",
    )


class MultiGrainedModel(AligningModel):
    """:class:`~models.align.AligningModel` with the box head (eq. 4) and the word head (eq. 3)."""

    def __init__(self, config: PretrainModelConfig, vocab_size: int | None = None):
        super().__init__(config, vocab_size)
        self.config: PretrainModelConfig = config
        width = self.text.width
        vocabulary, embedded = self.text.word_embeddings.shape
        own_table = config.word_table == "own"
        if embedded != width and not own_table:
            raise UserError(
                f"model.word_table: tied, but words are embedded in {embedded} dimensions and model.fusion has {width}; "
                "set it to `own`"
            )
        self.box_head = mlp_head(width, 4)
        # BERT's head belongs to the text encoder's family, and so does its eps (as released).
        self.word_head = WordHead(width, vocabulary, self.text.block_config.eps, own_table=own_table)

    def start_mlm(
        self, queue: FusionQueue, masked: PackedTexts, memory: CrossMemory | None, text: MaskedText
    ) -> Callable[[], Tensor]:
        """Queue masked texts; the function that is returned gives the loss of their masked words (eq. 3), summed over them, once
        the queue has run. ``memory``: what the texts attend to; None: nothing."""
        words = MaskedWords.of(text)
        fused = queue.at_positions(masked, memory, words.queries)
        return lambda: losses.masked_words(self.word_head(fused(), self.text.word_embeddings), words.labels)

    def predict_boxes(self, texts: PackedTexts, images: Concepts, image_index: Tensor) -> Tensor:
        """Eq. 4: the box of each of N texts in a whole image, (N, 4) in 0..1 as centre and size; ``image_index`` (N,) int64 names
        the image of each text."""
        memory = self.fusion.concept_memory(images).select(image_index)
        (cls,) = self.fusion.fuse([FusionPass.cls(texts, memory)])
        return predict_box(self.box_head, cls)

    def predict_words(self, texts: PackedTexts, images: Concepts, words: MaskedWords) -> Tensor:
        """Logits (Q, V) of the masked words of N texts, in order, from text n and image n."""
        memory = self.fusion.concept_memory(images)
        (fused,) = self.fusion.fuse([FusionPass(texts, memory, words.queries)])
        return self.word_head(fused, self.text.word_embeddings)


@dataclass(frozen=True)
class MaskedWords:
    """The masked tokens of texts, packed.

    ``queries``: their positions; the fusion computes no other states for the word head. ``labels`` (Q,) int64: the original token
    ids, :data:`~utils.batch.IGNORE` for spare ones.
    """

    queries: QueryPositions
    labels: Tensor

    @staticmethod
    def of(text: MaskedText) -> MaskedWords:
        """The masked tokens of a batch's texts."""
        packing = Packing.of(text.labels.ne(IGNORE).sum(dim=1), text.labels.shape[1], text.masked)
        labels = packing.pack(text.labels).masked_fill(packing.text_index >= packing.count, IGNORE)
        return MaskedWords(QueryPositions(text.positions, packing), labels)


def zero_loss(parameters: Sequence[nn.Parameter], device: torch.device) -> Tensor:
    """Zero on ``device`` that depends on all ``parameters``: DDP waits for the gradient of each, also in a step that does not
    train it."""
    zero = torch.zeros((), device=device)
    return sum((0 * parameter.sum() for parameter in parameters), zero)
