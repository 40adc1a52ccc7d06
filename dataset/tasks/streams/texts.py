"""Streams of texts without images, and of texts with translations."""

from __future__ import annotations

import numpy as np

from batches.pretraining import TextBatch, TranslationBatch
from dataset.config import TextStreamConfig, TranslationStreamConfig
from dataset.examples import Account, RecordStream, filled
from dataset.records.schema import RawRecord, parse_text_record, parse_translation_record
from dataset.text.processors import TextExample, TextProcessor


class TextStream:
    """A stream of texts without images."""

    def __init__(self, config: TextStreamConfig, source: RecordStream[RawRecord], text: TextProcessor):
        self.config, self.source, self.text = config, source, text

    def batch(self, number: int, account: Account) -> TextBatch:
        texts, valid = filled(self.source.examples(number, account, self.example), self.text.filler)
        return TextBatch(self.text.collate(texts), valid)

    def example(self, raw: RawRecord, rng: np.random.Generator) -> TextExample:
        texts = parse_text_record(raw, self.config.text_key)
        return self.text.encode(self.text.choose(texts, rng), rng)


class TranslationStream:
    """A stream of texts with translations. In each pair, one of the two texts, chosen at random, is masked, as in the released
    code."""

    def __init__(self, config: TranslationStreamConfig, source: RecordStream[RawRecord], text: TextProcessor):
        self.config, self.source, self.text = config, source, text

    def batch(self, number: int, account: Account) -> TranslationBatch:
        examples = self.source.examples(number, account, self.example)
        rows, valid = filled(examples, lambda: (self.text.filler(), ""))
        texts = self.text.collate([text for text, _ in rows])
        return TranslationBatch(texts, self.text.encode_plain([other for _, other in rows]), valid)

    def example(self, raw: RawRecord, rng: np.random.Generator) -> tuple[TextExample, str]:
        sides = parse_translation_record(raw, self.config.source_key, self.config.target_key)
        first, second = sides if rng.random() < 0.5 else sides[::-1]
        text = self.text.encode(self.text.choose(first, rng), rng)
        return text, self.text.choose(second, rng)
