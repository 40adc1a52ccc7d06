"""The config of the pre-training model."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from models.core.contrastive import AligningConfig, ContrastiveConfig
from utils.config import Config

Identical = Literal["ignore", "negative"]


class StreamWeights(Config):
    """The factor by which the losses of each stream (type of training data) are multiplied; None if the run does not use the
    stream."""

    images: float | None = 1.0
    regions: float | None = 1.0
    texts: float | None = None
    translations: float | None = None
    videos: float | None = None
    long_images: float | None = None
    long_regions: float | None = None


class IdenticalTexts(Config):
    """How each stream treats pairs with equal texts in a batch."""

    images: Identical = Field(
        "negative",
        description="negative: examples with equal texts are negatives of each other; ignore: such pairs are not compared",
    )
    videos: Identical = Field(
        "negative",
        description="negative: examples with equal texts are negatives of each other; ignore: such pairs are not compared",
    )
    translations: Identical = Field(
        "negative",
        description="negative: examples with equal texts are negatives of each other; ignore: such pairs are not compared",
    )
    regions: Identical = Field(
        "ignore",
        description="negative: regions with equal texts, such as 'a man', are negatives of each other; ignore: such "
        "pairs are not compared",
    )


class PretrainContrastiveConfig(ContrastiveConfig):
    """The contrastive loss of pre-training, where several pairs can have the same text."""

    identical_texts: IdenticalTexts = IdenticalTexts()

    @field_validator("identical_texts", mode="before")
    @classmethod
    def _same_for_all_streams(cls, value: Any) -> Any:
        return dict.fromkeys(IdenticalTexts.model_fields, value) if isinstance(value, str) else value


class PretrainModelConfig(AligningConfig):
    """The pre-training model."""

    contrastive: PretrainContrastiveConfig = PretrainContrastiveConfig()
    word_table: Literal["tied", "own"] = Field(
        "tied",
        description="word table of the MLM head. tied: the word embedding table, as in BERT; own: a separate table, "
        "as released for XLM-R",
    )
