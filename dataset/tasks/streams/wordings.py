"""The texts of an example of image-text and region-text pairs: a caption, a long caption, and hard negatives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from batches.pretraining import HardNegatives, LongTexts
from dataset.records.schema import BrokenRecordError, Description, Texts
from dataset.tasks.account import filled
from dataset.tasks.streams.base import ImageRecordsConfig
from dataset.text.hard_negatives import hard_negatives
from dataset.text.processors import TextExample, TextProcessor, clean_alternatives, clean_caption, mentions_side


@dataclass(frozen=True)
class Wording:
    """The texts of an example: ``text``; ``long``, which has losses of its own; and the ``hard_negatives`` of ``text``."""

    text: str
    long: str | None = None
    hard_negatives: tuple[str, ...] = ()

    def may_flip(self, careful: bool) -> bool:
        """Returns False if mirroring the image would make a hard negative true or, with ``careful``, a text wrong."""
        texts = [text for text in (self.text, self.long) if text is not None] if careful else []
        return not any(map(mentions_side, (*texts, *self.hard_negatives)))


@dataclass(frozen=True)
class EncodedWording:
    """A :class:`Wording` with encoded captions."""

    text: TextExample
    long: TextExample | None = None
    hard_negatives: tuple[str, ...] = ()


class TextMaker:
    """Makes the texts of the examples of a stream: chooses them, encodes them and stacks them into batches."""

    def __init__(self, config: ImageRecordsConfig, text: TextProcessor):
        self.text, self.length, self.hard_negatives = text, config.captions, config.hard_negatives

    def choose(
        self,
        described: Description,
        phrases: Sequence[Texts],
        rng: np.random.Generator,
        location: str,
        attributes: Texts = (),
    ) -> Wording:
        """Chooses the texts of an example, each time different ones if there are several. The languages of text and attribute are
        drawn independently.

        Args:
            described: the texts about an image or a box.
            phrases: the texts about each box of the image, from which hard negatives can be made.
            rng: source of randomness.
            location: location of the record, for messages.
            attributes: attributes, of which one is put before the text.

        Raises:
            BrokenRecordError: "empty text" or "missing key" if there is no text.
        """
        text = self.text.choose(described.texts(self.length, rng), rng, location)
        if attributes:
            text = clean_caption(f"{self.text.choose(attributes, rng, location)} {text}", self.text.max_words)
        more = described.more_texts(self.length)
        long = self.text.choose(more, rng, location) if more else None
        return Wording(text, long, self._hard_negatives(text, described, phrases, rng, location))

    def _hard_negatives(
        self, text: str, described: Description, phrases: Sequence[Texts], rng: np.random.Generator, location: str
    ) -> tuple[str, ...]:
        config = self.hard_negatives
        if config is None:
            return ()
        given = self._cleaned(described.hard_negatives, location)
        others = [phrase for texts in phrases for phrase in self._cleaned(texts, location)]
        return tuple(hard_negatives(config, text, given, others, rng))

    def _cleaned(self, texts: Texts, location: str) -> list[str]:
        """Returns all alternatives that can be used, or none."""
        try:
            return clean_alternatives(texts, self.text.config.language, self.text.max_words, location)
        except BrokenRecordError:
            return []

    def encode(self, wording: Wording, rng: np.random.Generator) -> EncodedWording:
        """Encodes the captions, with a masked copy of each."""
        text = self.text.encode(wording.text, rng)
        long = None if wording.long is None else self.text.encode(wording.long, rng)
        return EncodedWording(text, long, wording.hard_negatives)

    def stacked_long_texts(self, examples: Sequence[EncodedWording]) -> LongTexts | None:
        """Returns the long captions of a batch; None if they have no losses of their own."""
        if self.length != "both":
            return None
        rows, valid = filled([example.long for example in examples], self.text.filler)
        return LongTexts(self.text.collate(rows), valid)

    def stacked_hard_negatives(self, examples: Sequence[EncodedWording]) -> HardNegatives | None:
        """Returns the hard negatives of a batch; None if the stream has none."""
        if self.hard_negatives is None:
            return None
        numbers = range(self.hard_negatives.count)
        rows = [[dict(enumerate(example.hard_negatives)).get(number) for number in numbers] for example in examples]
        texts = self.text.encode_plain([text or "" for row in rows for text in row])
        return HardNegatives(texts, torch.tensor([[text is not None for text in row] for row in rows]))
