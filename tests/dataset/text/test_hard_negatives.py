"""Texts that differ from a caption in one fact."""

from __future__ import annotations

import numpy as np
import pytest

from dataset.text.hard_negatives import HardNegativesConfig, exchanged, hard_negatives, replaced

PHRASES = ["a red star", "a blue heart", "a green circle"]


def drawn(function, *arguments) -> set[str]:
    """All texts of 100 draws."""
    return {text for seed in range(100) for text in function(*arguments, np.random.default_rng(seed))}


def test_two_phrases_of_an_image_exchange_their_attributes():
    text = "a red star left of a blue heart"
    assert drawn(exchanged, text, PHRASES[:2]) == {"a blue star left of a red heart"}
    assert "a green star left of a blue heart" in drawn(exchanged, text, PHRASES)


@pytest.mark.parametrize(
    ("text", "phrases"),
    [
        ("a red star", ["a red star"]),
        ("a red star", ["a red star", "a blue star"]),  # the same name
        ("a red star", ["a red star", "a blue heart", "a blue star"]),  # the image has the other star
        ("a red star", ["a red star", "a red heart"]),  # the same attributes
        ("two dogs", PHRASES),
        ("", []),
    ],
)
def test_nothing_is_exchanged_that_might_still_be_true(text, phrases):
    assert not drawn(exchanged, text, phrases)


def test_a_word_is_replaced_by_one_that_contradicts_it():
    assert drawn(replaced, "the small dog left of me") == {
        *(f"the {size} dog left of me" for size in ("large", "big", "huge")),
        "the small dog right of me",
    }
    assert not drawn(replaced, "a dog with1 wheels")
    colours = drawn(replaced, "a gray cat")
    assert "a red cat" in colours
    assert not colours & {"a gray cat", "a grey cat"}


def test_each_kind_of_word_is_replaced_equally_often():
    texts = [replaced("two red dogs left", np.random.default_rng(seed))[0] for seed in range(300)]
    unchanged = [sum(word in text.split() for text in texts) for word in ("two", "red", "left")]
    assert all(170 < number < 230 for number in unchanged)


def test_sources_take_turns_and_texts_differ_from_the_caption_and_each_other():
    config = HardNegativesConfig(count=3)
    text, given = (
        "a red star left of a blue heart",
        ["no star at all", "no star at all", "a red star left of a blue heart"],
    )
    for seed in range(20):
        found = hard_negatives(config, text, given, PHRASES[:2], np.random.default_rng(seed))
        assert len(set(found)) == 3
        assert text not in found
        assert {"no star at all", "a blue star left of a red heart"} <= set(found)


@pytest.mark.parametrize("source", ["given", "exchanged", "replaced"])
def test_a_source_alone_gives_its_own_texts(source):
    config = HardNegativesConfig(count=9, sources=(source,))
    found = hard_negatives(config, "a red star", ["a dog"], PHRASES[:2], np.random.default_rng(0))
    assert {"given": found == ["a dog"], "exchanged": found == ["a blue star"], "replaced": len(found) == 1}[source]


def test_a_text_without_any_has_none():
    assert hard_negatives(HardNegativesConfig(), "dog", [], [], np.random.default_rng(0)) == []
