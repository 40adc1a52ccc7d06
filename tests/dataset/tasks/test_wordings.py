"""The texts of an example: long captions count wherever captions do, and hard negatives differ from their caption."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from dataset.broken import BrokenRecordError
from dataset.config import HardNegativesConfig, ImageStreamConfig, TextDataConfig
from dataset.records.schema import Description
from dataset.tasks.streams.wordings import TextMaker, Wording
from dataset.text.processors import TextProcessor

SIDES = ("a star", "a star on the left")


@pytest.mark.parametrize(("text", "long", "negative"), list(product(SIDES, (*SIDES, None), (*SIDES, None))))
def test_a_side_in_any_text_prevents_a_flip(text, long, negative):
    """A hard negative must stay wrong. A caption only has to stay right if flips are careful."""
    wording = Wording(text, long, () if negative is None else (negative,))
    named = [each is not None and "left" in each for each in (text, long, negative)]
    assert wording.may_flip(careful=True) is not any(named)
    assert wording.may_flip(careful=False) is not named[2]


@pytest.fixture
def maker(tokenizer):
    def make(captions: str = "both", max_tokens: int = 30, **hard) -> TextMaker:
        negatives = HardNegativesConfig(**hard)
        stream = ImageStreamConfig(files=["a.jsonl"], batch_size=1, captions=captions, hard_negatives=negatives)
        return TextMaker(stream, TextProcessor(tokenizer, TextDataConfig(max_tokens=max_tokens)))

    return make


def drawn(maker: TextMaker, described: Description, others: tuple = ()) -> set[str]:
    """The hard negatives of 60 draws."""
    return {
        negative
        for seed in range(60)
        for negative in maker.choose(described, others, np.random.default_rng(seed)).hard_negatives
    }


@pytest.mark.parametrize("captions", ["short", "long", "sample", "both"])
def test_no_text_about_the_image_is_a_hard_negative(maker, captions):
    """Neither a caption nor a long caption, whichever of them the stream uses, nor a text about a box."""
    short, long, of_a_box = "a red star", "a small red star and a blue star", "a green star"
    described = Description((short,), (long,), (short, long, of_a_box, "a wet star"))
    found = drawn(maker(captions, count=16), described, (Description((of_a_box,)),))
    assert "a wet star" in found and len(found) > 5
    assert found.isdisjoint({short, long, of_a_box, "a blue star"})


def test_a_word_of_a_long_caption_can_be_exchanged(maker):
    described = Description(("a red star",), ("a red star left of a blue circle",))
    assert drawn(maker(sources=("exchanged",)), described) == {"a blue star"}
    assert not drawn(maker(sources=("exchanged",)), Description(described.captions))


def test_a_hard_negative_that_equals_its_caption_after_truncation_is_dropped(maker):
    """[CLS], four words and [SEP] are six tokens."""
    made, wording = (
        maker(max_tokens=6),
        Wording("a red star on the dog", None, ("a red star on the cat", "a blue star")),
    )
    encoded = made.encode(wording, np.random.default_rng(0))
    assert encoded.hard_negatives == (made.text.token_ids("a blue star"),)
    longer = maker(max_tokens=8)
    kept = longer.encode(wording, np.random.default_rng(0)).hard_negatives
    assert kept == tuple(longer.text.token_ids(text) for text in wording.hard_negatives)


def test_hard_negatives_are_counted_in_the_records_that_can_be_read(maker):
    """The second record's shard is lost, and the fourth record has no caption."""
    captions = ["a red star", None, "a thing", ""]

    class Records:
        prefetches = False

        def __len__(self):
            return len(captions)

        def read(self, number):
            if captions[number] is None:
                raise FileNotFoundError(f"{number}.jsonl")
            return captions[number]

        def exact_location(self, number):
            return f"{number}.jsonl"

    def described(caption):
        if not caption:
            raise BrokenRecordError("missing key", "no caption")
        return [Description((caption,), hard_negatives=("a wet star",))], (Description(("a blue circle",)),)

    counts = maker(sources=("exchanged", "given")).count_hard_negatives(Records(), described)
    assert (counts.texts, counts.having) == (2, 2)
    assert counts.by_source == {"exchanged": 1, "given": 2}
