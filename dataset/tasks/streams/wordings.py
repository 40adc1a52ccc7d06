"""The texts of an image-text or region-text example: a caption, a long caption, and hard negatives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass
from functools import partial
from itertools import chain

import numpy as np
import torch

from batches.pretraining import HardNegatives, LongTexts
from dataset.config import HardNegativeSource, ImageRecordsConfig
from dataset.examples import Records, filled, readable_records
from dataset.records.schema import Description, RawRecord, Texts, texts_in_language
from dataset.text.hard_negatives import hard_negatives
from dataset.text.processors import TextExample, TextProcessor, clean_caption, mentions_side

ENGLISH = "en"

SAMPLED = 50
"""Number of records of a stream, spread over its shards, in which hard negatives are counted before training."""

FEW_HARD_NEGATIVES = 0.1
"""A warning is logged if the fraction of texts with a hard negative is below this value."""
ADD_SOURCES = "add other sources, or hard_negatives to the records (docs/records.md), or set hard_negatives to null"
"""Remedy to suggest if there are few hard negatives."""

Described = tuple[Sequence[Description], Sequence[Description]]
"""The descriptions of a record that have examples; and all descriptions of the record."""


@dataclass(frozen=True)
class Wording:
    """The texts of an example: ``text``; a ``long`` text, which has separate losses; and the ``hard_negatives`` of ``text``."""

    text: str
    long: str | None = None
    hard_negatives: tuple[str, ...] = ()

    def may_flip(self, careful: bool) -> bool:
        """Returns False if mirroring the image would make a hard negative true or, with ``careful``, a text wrong."""
        texts = [text for text in (self.text, self.long) if text is not None] if careful else []
        return not any(map(mentions_side, (*texts, *self.hard_negatives)))


@dataclass(frozen=True)
class EncodedWording:
    """A :class:`Wording` as tokens: ``hard_negatives`` contains the token ids of each hard negative."""

    text: TextExample
    long: TextExample | None = None
    hard_negatives: tuple[list[int], ...] = ()


@dataclass(frozen=True)
class HardNegativeCounts:
    """Number of sampled ``texts``, number of texts ``having`` a hard negative, and number of texts with a hard negative from each
    source."""

    texts: int
    having: int
    by_source: Mapping[HardNegativeSource, int]

    @property
    def are_few(self) -> bool:
        return self.having < FEW_HARD_NEGATIVES * self.texts

    def __str__(self) -> str:
        sources = ", ".join(f"{source} {_percent(count, self.texts)}" for source, count in self.by_source.items())
        return f"{_percent(self.having, self.texts)} of {self.texts:,} sampled texts have a hard negative ({sources})"


def _percent(count: int, total: int) -> str:
    return f"{100 * count / max(1, total):.1f}%"


class TextMaker:
    """Builds the texts of the examples of a stream: chooses them, encodes them and stacks them into batches."""

    def __init__(self, config: ImageRecordsConfig, text: TextProcessor):
        self.text, self.length, self.hard_negatives = text, config.captions, config.hard_negatives

    def choose(
        self,
        described: Description,
        others: Sequence[Description],
        rng: np.random.Generator,
    ) -> Wording:
        """Chooses the texts of an example; if there are several, the choice is random. The languages of text and attribute are
        drawn independently.

        Args:
            described: the texts about an image or a box.
            others: the texts about the image and each of its boxes, whose words can be exchanged. No hard negative equals one
                of these texts.
            rng: source of randomness.

        Raises:
            BrokenRecordError: "empty text" or "missing key" if there is no text.
        """
        texts = self._texts_of(described, rng)
        text = self.text.choose(texts, rng)
        language = self.text.config.language or self._language_of(text, texts)
        if described.attributes:
            text = self._with_attribute(self.text.choose(described.attributes, rng), text)
        has_long = self.length == "both" and described.captions and described.long_captions
        long = self.text.choose(described.long_captions, rng) if has_long else None
        if self.hard_negatives is None:
            return Wording(text, long)
        truths = [text for each in (described, *others) for text in self._truths(each, language)]
        given = self._cleaned([described.hard_negatives], language)
        negatives = hard_negatives(self.hard_negatives, text, given, truths, rng, english=language in (None, ENGLISH))
        return Wording(text, long, tuple(negatives))

    def _texts_of(self, described: Description, rng: np.random.Generator) -> Texts:
        """Returns the captions of the stream's length. A missing long caption is replaced by a short one, and vice versa. With
        "both", these are the short captions; the long ones have separate losses."""
        if self.length in ("short", "both") or not (described.captions and described.long_captions):
            return described.captions or described.long_captions
        return described.long_captions if self.length == "long" or rng.random() < 0.5 else described.captions

    def count_hard_negatives(
        self, records: Records[RawRecord], described: Callable[[RawRecord], Described]
    ) -> HardNegativeCounts:
        """Counts the texts with a hard negative in a sample of records.

        Args:
            described: parses a record into its texts.
        """
        assert self.hard_negatives is not None
        by_source = {source: copy(self) for source in self.hard_negatives.sources}
        for source, maker in by_source.items():
            maker.hard_negatives = self.hard_negatives.model_copy(update={"sources": (source,)})

        def sources_in(index: int, raw: RawRecord) -> list[list[HardNegativeSource]]:
            """Returns the sources of hard negatives for each text of a record."""
            descriptions, others = described(raw)
            return [
                [
                    source
                    for source, maker in by_source.items()
                    if maker.choose(each, others, np.random.default_rng(index)).hard_negatives
                ]
                for each in descriptions
                if self._texts_of(each, np.random.default_rng(index))
            ]

        texts, having, counts = 0, 0, Counter[HardNegativeSource]()
        for index in np.unique(np.linspace(0, len(records) - 1, SAMPLED).round().astype(int)).tolist():
            for found in chain.from_iterable(readable_records(records, [index], partial(sources_in, index))):
                texts, having = texts + 1, having + bool(found)
                counts.update(found)
        return HardNegativeCounts(texts, having, {source: counts[source] for source in by_source})

    def encode(self, wording: Wording, rng: np.random.Generator) -> EncodedWording:
        """Encodes the texts. Captions also get a masked copy; hard negatives that equal their caption after truncation are
        skipped."""
        text = self.text.encode(wording.text, rng)
        long = None if wording.long is None else self.text.encode(wording.long, rng)
        negatives = [self.text.token_ids(negative) for negative in wording.hard_negatives]
        return EncodedWording(text, long, tuple(ids for ids in negatives if ids != text.ids))

    def stacked_long_texts(self, examples: Sequence[EncodedWording]) -> LongTexts | None:
        """Returns the long captions of a batch, or None if they have no separate losses."""
        if self.length != "both":
            return None
        rows, valid = filled([example.long for example in examples], self.text.filler)
        return LongTexts(self.text.collate(rows), valid)

    def stacked_hard_negatives(self, examples: Sequence[EncodedWording]) -> HardNegatives | None:
        """Returns the hard negatives of a batch, or None if the stream has none."""
        if self.hard_negatives is None:
            return None
        count, filler = self.hard_negatives.count, self.text.filler().ids
        rows = [ids for example in examples for ids in (*example.hard_negatives, *[filler] * count)[:count]]
        counts = torch.tensor([len(example.hard_negatives) for example in examples])
        return HardNegatives(self.text.stack_plain(rows), torch.arange(count) < counts[:, None])

    def _language_of(self, text: str, texts: Texts) -> str | None:
        """Returns the language of a text that was chosen from ``texts``, or None if the texts are not given by language."""
        for each in texts:
            for language in each if isinstance(each, Mapping) else ():
                if text in self._cleaned([(each,)], language):
                    return language
        return None

    def _truths(self, described: Description, language: str | None) -> list[str]:
        """Returns all captions, long captions, and captions with an attribute, in a language."""
        texts = self._cleaned([described.captions, described.long_captions], language)
        attributes = self._cleaned([described.attributes], language)
        return texts + [self._with_attribute(attribute, text) for attribute in attributes for text in texts]

    def _with_attribute(self, attribute: str, text: str) -> str:
        return clean_caption(f"{attribute} {text}", self.text.max_words)

    def _cleaned(self, several: Iterable[Texts], language: str | None) -> list[str]:
        """Returns all usable texts in a language, including texts without a language."""
        found = []
        for text in (
            text for texts in several for alternative in texts for text in texts_in_language(alternative, language)
        ):
            with suppress(ValueError):  # nothing is left of the text after cleaning
                found.append(clean_caption(text, self.text.max_words))
        return found
