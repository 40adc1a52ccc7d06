"""The stream of texts with their translations."""

from __future__ import annotations

import pytest
import torch

from batches.base import IGNORE
from dataset.config import DataConfig, TextDataConfig, TranslationStreamConfig
from dataset.tasks.pretrain import PretrainBatches


@pytest.fixture
def batches(tokenizer):
    def batches(file: str, size: int = 4, **more) -> PretrainBatches:
        text = TextDataConfig(max_tokens=8, mask_prob=0.5)
        stream = TranslationStreamConfig(files=[file], batch_size=size, **more)
        data = DataConfig(text=text, translations=stream, workers=0)
        return PretrainBatches(data, tokenizer=tokenizer, image_size=16, patch_size=8, seed=0)

    return batches


def rows(count: int) -> list[dict[str, str]]:
    return [{"source_text": "a red star", "target_text": "the blue circle"} for _ in range(count)]


def test_either_text_of_a_pair_may_be_masked(batches, write_lines, tokenizer):
    batch = batches(write_lines("a.jsonl", rows(32)), 32).make(0)
    pairs = batch.translations
    first = [tokenizer.decode(ids, skip_special_tokens=True) for ids in pairs.text.ids]
    second = [tokenizer.decode(ids, skip_special_tokens=True) for ids in pairs.other.ids]
    assert set(first) == {"a red star", "the blue circle"}
    assert all({one, other} == {"a red star", "the blue circle"} for one, other in zip(first, second, strict=True))
    assert (pairs.text.labels != IGNORE).any(dim=1).all()
    assert (batch.images, batch.regions, batch.texts) == (None, None, None)
    assert (batch.read, len(batch.records)) == (32, 32)


def test_pairs_depend_only_on_the_index(batches, write_lines):
    file = write_lines("a.jsonl", rows(9))
    one, other = batches(file).make(3).translations, batches(file).make(3).translations
    assert torch.equal(one.text.masked_ids, other.text.masked_ids)
    assert torch.equal(one.other.ids, other.other.ids)


def test_a_broken_pair_of_texts_is_an_invalid_row(batches, write_lines):
    broken = [{"source_text": "a red star"}, {"source_text": "a dog", "target_text": "?!"}]
    batch = batches(write_lines("a.jsonl", [*rows(2), *broken])).make(0)
    assert batch.translations.valid.sum() == 2
    assert sorted(item.reason for item in batch.broken) == ["empty text", "missing key"]
    assert (batch.translations.text.labels[~batch.translations.valid] == IGNORE).all()


def test_pairs_may_be_longer_than_captions(batches, write_lines):
    long = [{"source_text": "a red star " * 10, "target_text": "the blue circle " * 10}]
    text = TextDataConfig(max_tokens=20, max_masks=4)
    pairs = batches(write_lines("a.jsonl", long), 1, text=text).make(0).translations
    assert pairs.text.ids.shape == (1, 20)
    assert pairs.other.ids.shape == (1, 20)
    assert batches(write_lines("a.jsonl", long), 1).make(0).translations.text.ids.shape == (1, 8)
