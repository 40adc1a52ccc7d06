"""The texts of an example of image-text and region-text pairs: a caption, a long caption, and hard negatives."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch

from batches.pretraining import HardNegatives, LongTexts
from dataset.records.schema import Description, Texts, spoken
from dataset.tasks.account import filled
from dataset.tasks.streams.base import ImageRecordsConfig
from dataset.text.hard_negatives import hard_negatives
from dataset.text.processors import TextExample, TextProcessor, clean_caption, mentions_side

ENGLISH = "en"


@dataclass(frozen=True)
class Wording:
    """The texts of an example: ``text``; ``long``, which has separate losses; and the ``hard_negatives`` of ``text``."""

    text: str
    long: str | None = None
    hard_negatives: tuple[str, ...] = ()

    def may_flip(self, careful: bool) -> bool:
        """Returns False if mirroring the image would make a hard negative true or, with ``careful``, a text wrong."""
        texts = [text for text in (self.text, self.long) if text is not None] if careful else []
        return not any(map(mentions_side, (*texts, *self.hard_negatives)))


@dataclass(frozen=True)
class EncodedWording:
    """A :class:`Wording` as tokens: ``hard_negatives`` has the token ids of each."""

    text: TextExample
    long: TextExample | None = None
    hard_negatives: tuple[list[int], ...] = ()


class TextMaker:
    """Makes the texts of the examples of a stream: chooses them, encodes them and stacks them into batches."""

    def __init__(self, config: ImageRecordsConfig, text: TextProcessor):
        self.text, self.length, self.hard_negatives = text, config.captions, config.hard_negatives

    def choose(
        self,
        described: Description,
        others: Sequence[Texts],
        rng: np.random.Generator,
        location: str,
        attributes: Texts = (),
    ) -> Wording:
        """Chooses the texts of an example, each time different ones if there are several. The languages of text and attribute are
        drawn independently.

        Args:
            described: the texts about an image or a box.
            others: the texts about the image and each of its boxes, with which hard negatives are made.
            rng: source of randomness.
            location: location of the record, for messages.
            attributes: attributes, of which one is put before the text.

        Raises:
            BrokenRecordError: "empty text" or "missing key" if there is no text.
        """
        texts = described.texts(self.length, rng)
        text = self.text.choose(texts, rng, location)
        language = self.text.config.language or self._language_of(text, texts)
        if attributes:
            text = clean_caption(f"{self.text.choose(attributes, rng, location)} {text}", self.text.max_words)
        more = described.more_texts(self.length)
        long = self.text.choose(more, rng, location) if more else None
        if self.hard_negatives is None:
            return Wording(text, long)
        truths = self._cleaned([described.captions, described.long_captions, *others], language)
        given = self._cleaned([described.hard_negatives], language)
        negatives = hard_negatives(self.hard_negatives, text, given, truths, rng, english=language in (None, ENGLISH))
        return Wording(text, long, tuple(negatives))

    def encode(self, wording: Wording, rng: np.random.Generator) -> EncodedWording:
        """Encodes the texts, the captions with a masked copy of each. Hard negatives that are equal to their caption because both
        are cut are skipped."""
        text = self.text.encode(wording.text, rng)
        long = None if wording.long is None else self.text.encode(wording.long, rng)
        negatives = [self.text.token_ids(negative) for negative in wording.hard_negatives]
        return EncodedWording(text, long, tuple(ids for ids in negatives if ids != text.ids))

    def stacked_long_texts(self, examples: Sequence[EncodedWording]) -> LongTexts | None:
        """Returns the long captions of a batch; None if they have no separate losses."""
        if self.length != "both":
            return None
        rows, valid = filled([example.long for example in examples], self.text.filler)
        return LongTexts(self.text.collate(rows), valid)

    def stacked_hard_negatives(self, examples: Sequence[EncodedWording]) -> HardNegatives | None:
        """Returns the hard negatives of a batch; None if the stream has none."""
        if self.hard_negatives is None:
            return None
        count, filler = self.hard_negatives.count, self.text.filler().ids
        rows = [ids for example in examples for ids in (*example.hard_negatives, *[filler] * count)[:count]]
        counts = torch.tensor([len(example.hard_negatives) for example in examples])
        return HardNegatives(self.text.stack_plain(rows), torch.arange(count) < counts[:, None])

    def _language_of(self, text: str, texts: Texts) -> str | None:
        """Returns the language of a text that was chosen among texts by language; None if it has none."""
        for each in texts:
            for language in each if isinstance(each, Mapping) else ():
                if text in self._cleaned([(each,)], language):
                    return language
        return None

    def _cleaned(self, several: Iterable[Texts], language: str | None) -> list[str]:
        """Returns all texts in a language that can be used; of texts without a language, all."""
        found = []
        for text in (text for texts in several for alternative in texts for text in spoken(alternative, language)):
            with suppress(ValueError):  # nothing is left of it
                found.append(clean_caption(text, self.text.max_words))
        return found
