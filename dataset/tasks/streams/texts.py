"""Texts without pictures, alone or with a translation."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from pydantic import Field

from dataset.records.broken import broken_record
from dataset.records.schema import RawRecord, parse_pair_record, parse_text_record
from dataset.shards.samplers import RecordSource
from dataset.tasks.streams.base import Report, StreamConfig
from dataset.text.processors import TextDataConfig, TextExample, TextProcessor
from utils.batch import TextBatch, TextPairBatch


class TextStreamConfig(StreamConfig):
    """Texts without pictures."""

    text_key: str = Field("text", description="Key of the text in a JSON record.")


class TextPairStreamConfig(StreamConfig):
    """Texts and their translations, in either direction."""

    source_key: str = Field("source_text", description="Key of a text in a JSON record.")
    target_key: str = Field("target_text", description="Key of its translation.")
    text: TextDataConfig | None = Field(
        None, description="Cutting and masking of these texts; null = that of all others."
    )


class TextStream:
    """Texts alone."""

    def __init__(self, config: TextStreamConfig, source: RecordSource, text: TextProcessor):
        self.config, self.source, self.text = config, source, text

    def batch(self, number: int, report: Report) -> TextBatch:
        texts, valid = [], []
        for index, rng in self.source.samples(number):
            report.read += 1
            try:
                record = parse_text_record(self.source.shards.read(index), self.config.text_key)
                texts.append(self.text.encode(self.text.choose(record.texts, rng, record.place), rng))
                report.places.append(record.place)
                valid.append(True)
            except Exception as error:  # nothing in a record ends a run
                report.broken.append(broken_record(error, partial(self.source.shards.place, index)))
                texts.append(self.text.filler())
                valid.append(False)
        return TextBatch(self.text.collate(texts), torch.tensor(valid))


class TextPairStream:
    """Of each pair one text is masked, at random (as released), and the other one is whole."""

    def __init__(self, config: TextPairStreamConfig, source: RecordSource, text: TextProcessor):
        self.config, self.source, self.text = config, source, text

    def batch(self, number: int, report: Report) -> TextPairBatch:
        texts, others, valid = [], [], []
        for index, rng in self.source.samples(number):
            report.read += 1
            try:
                raw = self.source.shards.read(index)
                text, other = self._example(raw, rng)
                report.places.append(raw.place)
                valid.append(True)
            except Exception as error:  # nothing in a record ends a run
                report.broken.append(broken_record(error, partial(self.source.shards.place, index)))
                text, other = self.text.filler(), ""
                valid.append(False)
            texts.append(text)
            others.append(other)
        return TextPairBatch(self.text.collate(texts), self.text.encode_plain(others), torch.tensor(valid))

    def _example(self, raw: RawRecord, rng: np.random.Generator) -> tuple[TextExample, str]:
        sides = parse_pair_record(raw, self.config.source_key, self.config.target_key)
        first, second = sides if rng.random() < 0.5 else sides[::-1]
        text = self.text.encode(self.text.choose(first, rng, raw.place), rng)
        return text, self.text.choose(second, rng, raw.place)
