"""From captions to masked tokens. The golden values were computed by the authors' code."""

from __future__ import annotations

import copy
import itertools
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from transformers import PreTrainedTokenizerFast

from batches.base import IGNORE
from dataset.broken import BrokenRecordError
from dataset.config import TextDataConfig
from dataset.text.loading import difference_of_tokenizers, load_tokenizer
from dataset.text.processors import TextProcessor, clean_alternatives, clean_caption, clean_question, mentions_side
from tests.messages import OneLine, naming
from utils.errors import UserError

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "data_helpers.json").read_text(encoding="utf-8"))
LONG = "a red star on the small watermelon street with two playful dog and " * 5


def processor(tokenizer, **config) -> TextProcessor:
    return TextProcessor(tokenizer, TextDataConfig(**config))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("case", GOLDEN["pre_caption"], ids=lambda case: repr(case["raw"][:20]))
def test_captions_are_cleaned_as_released(case):
    assert clean_caption(case["raw"], case["max_words"]) == case["out"]


@pytest.mark.parametrize("case", GOLDEN["pre_question"], ids=lambda case: repr(case["raw"][:20]))
def test_questions_are_cleaned_as_released(case):
    assert clean_question(case["raw"], case["max_words"]) == case["out"]


@pytest.mark.parametrize("raw", [raw for raw, _ in GOLDEN["pre_caption_errors"]])
def test_a_caption_of_punctuation_is_an_error(raw):
    with pytest.raises(ValueError, match="nothing is left"):
        clean_caption(raw, 30)


SEGMENTED = [
    ("一个 穿 红 衣服 的 男人", "一个穿红衣服的男人"),
    ("男人 ， 女人 和 狗 。", "男人，女人和狗。"),
    ("赤い 服 を 着た 男の 人", "赤い服を着た男の人"),
    ("一个 iPhone 在 桌子 上", "一个 iphone 在桌子上"),
    ("빨간 옷을 입은 남자", "빨간 옷을 입은 남자"),
]


@pytest.mark.parametrize("clean", [clean_caption, clean_question])
@pytest.mark.parametrize(("raw", "expected"), SEGMENTED)
def test_segmented_chinese_and_japanese_loses_its_spaces(clean, raw, expected):
    assert clean(raw, 30) == expected
    assert clean(f"{SEGMENTED[0][0]} " * 9, 1) == SEGMENTED[0][1] * 9


@pytest.mark.parametrize(
    "text", ["left", "to the right of it", "the leftmost cup", "left-hand", "rightward", "Left, a"]
)
def test_left_and_right_are_found_as_words(text):
    assert mentions_side(text)


@pytest.mark.parametrize("text", ["bright", "leftover cake", "upright", "copyright", "cleft", "a star"])
def test_words_that_contain_left_or_right_do_not_match(text):
    assert not mentions_side(text)


def test_a_truncated_text_keeps_its_end_token(tokenizer):
    text = processor(tokenizer, max_tokens=6, max_words=40)
    example = text.encode("a playful dog on the street", rng())
    pieces = tokenizer.convert_ids_to_tokens(example.ids)
    assert pieces == ["[CLS]", "a", "play", "##ful", "dog", "[SEP]"]
    assert tokenizer.convert_ids_to_tokens(text.encode("a dog", rng()).ids) == ["[CLS]", "a", "dog", "[SEP]"]
    assert text.filler().ids == [tokenizer.cls_token_id, tokenizer.sep_token_id]
    assert text.filler().positions == []


def test_tokens_equal_the_output_of_the_whole_tokenizer(tokenizer):
    found = processor(tokenizer).encode_plain(["a watermelon", "two playfulness dog"])
    ids, mask = found.ids, found.mask
    expected = tokenizer(["a watermelon", "two playfulness dog"], padding=True, return_tensors="pt")
    assert ids.tolist() == expected["input_ids"].tolist()
    assert mask.tolist() == expected["attention_mask"].bool().tolist()


MASKS = {
    0.5: {
        3: 2,
        4: 2,
        5: 2,
        6: 3,
        7: 4,
        8: 4,
        9: 4,
        10: 5,
        11: 6,
        12: 6,
        13: 6,
        15: 8,
        23: 12,
        24: 12,
        25: 12,
        26: 12,
        31: 12,
    },
    0.15: {3: 1, 9: 1, 10: 2, 16: 2, 17: 3, 29: 4, 31: 5},
    1.0: {3: 2, 4: 3, 12: 11, 13: 12, 14: 12},
}
"""The number of masks for each mask_prob and number of tokens (with [CLS] and [SEP]), computed by hand: halves are rounded to
even, there are 1 to 12 masks, and [CLS] is never masked."""


@pytest.mark.parametrize("prob", MASKS)
def test_the_number_of_masks_equals_the_released_code(tokenizer, prob):
    text = processor(tokenizer, max_tokens=40, max_words=40, mask_prob=prob, max_masks=12)
    for length, expected in MASKS[prob].items():
        example = text.encode(" ".join(["star"] * (length - 2)), rng(length))
        assert len(example.ids) == length
        assert len(set(example.positions)) == len(example.positions) == expected


def test_masked_ids_differ_only_at_masked_positions_and_labels_are_the_originals(tokenizer):
    text = processor(tokenizer, max_tokens=40)
    for seed in range(50):
        example = text.encode(clean_caption(LONG, 40), rng(seed))
        changed = [i for i, pair in enumerate(zip(example.ids, example.masked_ids, strict=True)) if len(set(pair)) == 2]
        assert set(changed) <= set(example.positions)
        assert example.labels == [example.ids[position] for position in example.positions]


def test_the_start_is_never_masked_and_the_end_sometimes_is(tokenizer):
    text = processor(tokenizer)
    drawn = Counter(position for seed in range(400) for position in text.encode("a red star", rng(seed)).positions)
    assert drawn[0] == 0
    assert 0.2 < drawn[4] / 400 < 0.8


def test_replacements_are_80_10_10(tokenizer):
    text = processor(tokenizer, max_tokens=40, max_words=40)
    masked = random = kept = 0
    for seed in range(1500):
        example = text.encode(clean_caption(LONG, 40), rng(seed))
        for position, label in zip(example.positions, example.labels, strict=True):
            now = example.masked_ids[position]
            masked += now == tokenizer.mask_token_id
            kept += now == label
            random += now not in (tokenizer.mask_token_id, label)
    total, vocabulary = masked + random + kept, len(tokenizer)
    # 18,000 draws: the standard error of a share is below 0.003. A random token is by chance the mask or the original.
    assert masked / total == pytest.approx(0.8 + 0.1 / vocabulary, abs=0.012)
    assert kept / total == pytest.approx(0.1 + 0.1 / vocabulary, abs=0.009)
    assert random / total == pytest.approx(0.1 * (1 - 2 / vocabulary), abs=0.009)


def test_every_position_is_masked_about_equally_often(tokenizer):
    text = processor(tokenizer, mask_prob=0.15, skipgram_prob=0.0, whole_word=False)
    drawn = Counter(p for seed in range(3000) for p in text.encode("a red star on the street", rng(seed)).positions)
    assert sorted(drawn) == list(range(1, 8))
    assert max(drawn.values()) < 1.25 * min(drawn.values())


def test_the_pieces_of_a_word_are_masked_together(tokenizer):
    text = processor(tokenizer, mask_prob=0.5, skipgram_prob=0.0)
    for seed in range(60):
        # Ten tokens with [CLS] and [SEP], and five masks. If the word is drawn first, it is never cut.
        positions = set(text.encode("playfulness a red star on the", rng(seed)).positions)
        own = positions & {1, 2, 3}
        if len(own) not in (0, 3):
            assert len(positions) == 5, "only the limit on the number of masks may split a word"
    lone = processor(tokenizer, mask_prob=0.01, skipgram_prob=0.0)
    # With one mask, the whole word is chosen and then cut to one random piece, so every piece occurs.
    drawn = {lone.encode("watermelon", rng(seed)).positions[0] for seed in range(80)}
    assert drawn == {1, 2, 3}
    # Six tokens and three masks: whichever piece of "playfulness" is drawn first, which happens in three of five cases, the whole
    # word is masked.
    three = processor(tokenizer, mask_prob=0.5, skipgram_prob=0.0)
    drawn = Counter(tuple(three.encode("playfulness star", rng(seed)).positions) for seed in range(300))
    assert drawn[1, 2, 3] > 0.55 * 300


def test_words_are_grouped_for_any_tokenizer():
    """A byte-level BPE marks the start of a word instead of its continuation, so tokens contain no "##"."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    entries = ["<s>", "</s>", "<pad>", "<mask>", "<unk>", *"▁redstarmlonw", "▁r", "▁s", "▁re", "▁st"]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(entries))}
    merges = [("▁", "r"), ("▁", "s"), ("▁r", "e"), ("▁s", "t")]
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    specials = {
        "cls_token": "<s>",
        "sep_token": "</s>",
        "pad_token": "<pad>",
        "mask_token": "<mask>",
        "unk_token": "<unk>",
    }
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **specials)
    text = processor(tokenizer, mask_prob=0.5, max_masks=5, skipgram_prob=0.0)
    assert tokenizer.convert_ids_to_tokens(text.encode("red star", rng()).ids)[1:-1] == ["▁re", "d", "▁st", "a", "r"]
    counts = Counter(tuple(text.encode("red star", rng(seed)).positions) for seed in range(200))
    # Seven tokens and four masks (3.5 rounded to even). If "star" (3, 4, 5) is drawn first, "red" or the end completes it.
    assert {len(positions) for positions in counts} == {4}
    assert sum(n for positions, n in counts.items() if {3, 4, 5} <= set(positions)) > 80


def runs(positions: list[int]) -> list[int]:
    """Lengths of the runs of consecutive numbers in ascending positions."""
    starts = [i for i, p in enumerate(positions) if i == 0 or p != positions[i - 1] + 1]
    return [end - start for start, end in itertools.pairwise([*starts, len(positions)])]


@pytest.mark.parametrize("size", [2, 3, 5])
def test_a_skip_gram_has_any_length_from_two_to_the_maximum(tokenizer, size):
    """There are as many masks as tokens in the longest span, and the text is so long that spans hardly ever touch. The masks form
    one run if the first span has the maximum length, which is one of ``size`` - 1 lengths."""
    text = processor(tokenizer, skipgram_prob=1.0, skipgram_size=size, mask_prob=1.0, max_masks=size, whole_word=False)
    drawn = [runs(text.mask_positions([False] * 300, rng(seed))) for seed in range(500)]
    assert all(sum(lengths) == size for lengths in drawn)
    longest = np.mean([lengths == [size] for lengths in drawn])
    assert longest == pytest.approx(1 / (size - 1), abs=0.08)


@pytest.mark.parametrize("prob", [0.0, 0.2, 0.6])
def test_skip_grams_are_as_frequent_as_configured(tokenizer, prob):
    """With two masks, both are neighbours if the first span is a skip-gram, or in one of three ways to cut a single token and a
    skip-gram."""
    text = processor(tokenizer, skipgram_prob=prob, skipgram_size=2, mask_prob=1.0, max_masks=2, whole_word=False)
    neighbours = np.mean([runs(text.mask_positions([False] * 300, rng(seed))) == [2] for seed in range(600)])
    assert neighbours == pytest.approx(prob + (1 - prob) * prob / 3, abs=0.06)


def test_the_same_generator_gives_the_same_masks(tokenizer):
    text = processor(tokenizer)
    first, again = (text.encode("a red star on the street", rng(5)) for _ in range(2))
    assert (first.masked_ids, first.positions) == (again.masked_ids, again.positions)


def test_a_batch_is_padded_to_its_longest_text(tokenizer):
    text = processor(tokenizer)
    examples = [
        text.encode("a red star", rng(1)),
        text.filler(),
        text.encode("dog", rng(2)),
        text.encode("a red star", rng(3)),
    ]
    batch = text.collate(examples)
    assert batch.ids.shape == batch.mask.shape == batch.masked_ids.shape == (4, 5)
    assert batch.mask.sum(1).tolist() == [5, 2, 3, 5]
    assert (batch.ids[~batch.mask] == tokenizer.pad_token_id).all()
    assert batch.positions.shape[1] == max(len(example.positions) for example in examples)
    assert (batch.labels[1] == IGNORE).all()
    used = batch.labels != IGNORE
    assert (batch.ids.gather(1, batch.positions)[used] == batch.labels[used]).all()
    assert batch.text_id[0] == batch.text_id[3] != batch.text_id[2]
    assert text.collate([text.filler()]).positions.shape == (1, 1)


def test_empty_alternatives_are_skipped_and_a_text_without_others_is_broken(tokenizer):
    text = processor(tokenizer, language="en")
    texts = ("...", {"en": "Star!"}, {"de": "Stern"})
    assert {text.choose(texts, rng(seed)) for seed in range(20)} == {"star"}
    assert clean_alternatives(texts, "en", 30) == ["star"]
    for choose in (lambda: text.choose(("...", ""), rng()), lambda: clean_alternatives(("...",), None, 30)):
        with pytest.raises(BrokenRecordError, match="empty text"):
            choose()


def test_out_of_range_settings_are_rejected():
    for wrong in ({"max_tokens": 2}, {"mask_prob": 0}, {"mask_prob": 1.1}, {"max_masks": 0}, {"skipgram_size": 1}):
        with pytest.raises(ValidationError):
            TextDataConfig(**wrong)


def test_a_saved_tokenizer_and_a_plain_vocabulary_can_be_loaded(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "saved")
    (tmp_path / "bare").mkdir()
    vocabulary = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    (tmp_path / "bare" / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    for folder in ("saved", "bare"):
        loaded = load_tokenizer(tmp_path / folder)
        assert len(loaded) == len(tokenizer)
        assert (
            processor(loaded).encode_plain(["a playful dog"]).ids.tolist()
            == processor(tokenizer).encode_plain(["a playful dog"]).ids.tolist()
        )


def test_a_missing_or_unusable_tokenizer_is_reported_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "empty").mkdir()
    for name, message in (
        (tmp_path / "empty", "contains no usable tokenizer"),
        (tmp_path / "gone", "does not exist; check"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            load_tokenizer(name)
        assert "\n" not in str(caught.value)


def test_changed_token_ids_are_detected_and_a_saved_copy_is_equal(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    kept, file = load_tokenizer(tmp_path), tmp_path / "tokenizer.json"
    assert difference_of_tokenizers(tokenizer, kept) is None
    values = json.loads(file.read_text())
    cut = {"direction": "Right", "max_length": 9, "strategy": "LongestFirst", "stride": 0}
    for changed, fragments in [
        ({"truncation": cut}, None),
        ({"normalizer": {"type": "Lowercase"}}, "its normalizer in tokenizer.json differs"),
        ({"pre_tokenizer": {"type": "WhitespaceSplit"}}, "its pre_tokenizer in tokenizer.json differs"),
    ]:
        file.write_text(json.dumps(values | changed))
        other = PreTrainedTokenizerFast(tokenizer_file=str(file), **tokenizer.special_tokens_map)
        assert difference_of_tokenizers(other, kept) == fragments
    larger = PreTrainedTokenizerFast(tokenizer_object=kept.backend_tokenizer, **tokenizer.special_tokens_map)
    assert "instead of '[PAD]'" in difference_of_tokenizers(
        PreTrainedTokenizerFast(tokenizer_file=str(file), **{**tokenizer.special_tokens_map, "pad_token": "[UNK]"}),
        kept,
    )
    count = len(kept)
    larger.add_tokens(["zebra"])
    assert OneLine(f"{count + 1} tokens", count) in difference_of_tokenizers(larger, tokenizer).splitlines()


def test_loading_a_tokenizer_folder_runs_no_code_and_asks_no_questions(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *prompt: "y")
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    asks = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(asks))
    with pytest.raises(UserError, match=naming("auto_map", "code")) as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_a_tokenizer_without_a_mask_token_is_rejected(tokenizer):
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, cls_token="[CLS]", sep_token="[SEP]")
    with pytest.raises(UserError, match="has no mask_token"):
        processor(bare)


def test_texts_without_masks_have_the_static_shape_too(tokenizer):
    text = processor(tokenizer)
    static = TextProcessor(tokenizer, text.config, static=True)
    plain, padded = (each.encode_plain(["a watermelon", "two playful dogs"]) for each in (text, static))
    length = plain.ids.shape[1]
    assert padded.ids.shape == padded.mask.shape == (2, text.limits.max_tokens)
    assert torch.equal(padded.ids[:, :length], plain.ids) and torch.equal(padded.mask[:, :length], plain.mask)
    assert not padded.mask[:, length:].any()


@pytest.mark.parametrize(("rows", "longest"), [(1, 30), (5, 30), (3, 512)])
def test_static_batches_have_few_different_token_counts(tokenizer, rows, longest):
    """Each token count is a shape to compile. Between a count and twice that count there are at most sixteen shapes, and no shape
    is much larger than needed, even if the longest text could be much longer."""
    static = TextProcessor(tokenizer, TextDataConfig(max_tokens=longest), static=True)
    counts, totals = set(), range(2 * rows, longest * rows + 1, 1 + longest // 100)
    for total in totals:
        lengths = [total // rows + (row < total % rows) for row in range(rows)]
        tokens = static.encode_plain([" ".join(["star"] * (length - 2)) for length in lengths]).token_count
        assert total <= tokens <= longest * rows
        assert tokens - total <= total / 8
        counts.add(tokens)
    for total in totals:
        assert sum(total <= count < 2 * total for count in counts) <= 16


def test_there_are_few_static_lengths(tokenizer):
    static = TextProcessor(tokenizer, TextDataConfig(max_tokens=300), static=True)
    widths = {static.encode_plain([" ".join(["star"] * words)]).ids.shape[1] for words in range(1, 400, 7)}
    assert widths == {64, 128, 256, 300}


def test_the_first_and_last_tokens_replace_cls_and_sep(tokenizer):
    """This is needed for Gemma's tokenizer, which has a mask token without declaring it."""
    backend = copy.deepcopy(tokenizer.backend_tokenizer)
    backend.add_special_tokens(["<bos>", "<eos>", "<mask>"])
    gemma = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<bos>", eos_token="<eos>", pad_token="[PAD]", unk_token="[UNK]"
    )
    processor = TextProcessor(gemma, TextDataConfig(max_tokens=10))
    ids = processor.encode_plain(["a red star"]).ids[0].tolist()
    assert (ids[0], ids[-1]) == (gemma.bos_token_id, gemma.eos_token_id)
    assert processor.mask_id == backend.token_to_id("<mask>")
