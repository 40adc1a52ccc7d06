"""Words of SentencePiece tokenizers and of scripts without spaces: which tokens are masked together."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from dataset.config import TextDataConfig
from dataset.text.loading import load_tokenizer
from dataset.text.processors import TextProcessor, clean_caption
from tests.messages import naming
from utils.errors import UserError

SPECIALS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
PIECES = [
    "▁",
    "▁a",
    "▁water",
    "melon",
    "s",
    "▁play",
    "ing",
    "▁red",
    "一个",
    "红色",
    "星形",
    "▁一个",
    "赤",
    "い",
    "星",
    "が",
    "▁赤",
]


def unigram(split: bool = True) -> PreTrainedTokenizerFast:
    """A tokenizer like XLM-R's: a Unigram model after Metaspace, with the same special tokens in the same order."""
    letters = [*"abcdefghijklmnopqrstuvwxyz", *"个形色红一"]
    scores = [
        *((piece, 0.0) for piece in SPECIALS),
        *((piece, -1.0) for piece in PIECES),
        *((each, -9.0) for each in letters),
    ]
    model = Tokenizer(models.Unigram(scores, unk_id=3))
    model.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=split)
    model.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=model,
        bos_token="<s>",
        cls_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
    )


@pytest.fixture(params=[True, False], ids=["words apart", "one word"])
def processor(request) -> TextProcessor:
    """One of the two tokenizers does not split at spaces."""
    return TextProcessor(unigram(request.param), TextDataConfig(max_tokens=30, mask_prob=0.3, skipgram_prob=0.0))


def grouped(processor: TextProcessor, text: str) -> list[list[str]]:
    ids, continues = processor.pieces(text)
    found: list[list[str]] = []
    for number, joined in zip(ids, continues, strict=True):
        piece = processor._pieces.id_to_token(number)
        if joined:
            found[-1].append(piece)
        else:
            found.append([piece])
    return found


def test_only_pieces_of_one_word_belong_together(processor):
    assert grouped(processor, "a watermelons playing") == [["▁a"], ["▁water", "melon", "s"], ["▁play", "ing"]]


def test_texts_start_and_end_with_the_special_tokens_of_the_tokenizer(processor):
    found = processor.encode_plain(["a watermelon", "red"])
    ids, mask = found.ids, found.mask
    assert ids[:, 0].tolist() == [0, 0]
    assert ids[1].tolist()[-1] == 1
    assert mask.sum(dim=1).tolist() == [5, 3]


def test_every_token_of_chinese_and_japanese_is_a_separate_word(processor):
    assert all(len(word) == 1 for word in grouped(processor, "一个红色星形")[1:])
    assert all(len(word) == 1 for word in grouped(processor, "赤い星が赤い"))
    assert grouped(processor, "一个红色星形 watermelon")[-1] == ["▁water", "melon"]


def test_chinese_is_truncated_by_tokens_instead_of_spaces(processor):
    text = "一个红色星形" * 30
    assert clean_caption(text, 5) == text
    ids = processor.encode_plain([text]).ids
    assert ids.shape[1] == 30


def test_whole_words_are_masked(processor):
    """Two of seven tokens are masked. They are a whole word, or a part of a word that the count cuts."""
    ids, continues = processor.pieces("a watermelon playing red")
    assert len(ids) == 6
    rows = [False, *continues, False]
    seen: Counter[tuple[int, ...]] = Counter()
    for seed in range(200):
        seen[tuple(processor.mask_positions(rows, np.random.default_rng(seed)))] += 1
    assert (2, 3) in seen
    assert (4, 5) in seen
    assert not {(3, 4), (2, 5), (3, 5)} & set(seen)


def test_masking_does_not_always_cover_a_whole_chinese_sentence(processor):
    _, continues = processor.pieces("一个红色星形一个红色星形")
    rows = [False, *continues, False]
    chosen = {tuple(processor.mask_positions(rows, np.random.default_rng(seed))) for seed in range(100)}
    assert len(chosen) > 5
    assert all(len(positions) == max(1, round(len(rows) * 0.3)) for positions in chosen)


def test_a_folder_with_only_a_sentencepiece_model_is_an_error_with_the_remedy(tmp_path):
    (tmp_path / "sentencepiece.bpe.model").write_bytes(b"\x0a\x03abc")
    with pytest.raises(UserError, match=naming("tokenizer.json", "pip install")):
        load_tokenizer(tmp_path)
