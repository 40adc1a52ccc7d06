"""Hard negatives: texts that differ from a caption in one detail."""

from __future__ import annotations

import numpy as np
import pytest

from dataset.config import HardNegativesConfig
from dataset.text.hard_negatives import hard_negatives
from demo.scenes.compose import compose_scene
from demo.scenes.describe import looks_of

PHRASES = ["a red star", "a blue heart", "a green circle"]


def drawn(
    text: str, truths: list[str], *sources: str, given: tuple[str, ...] = (), count: int = 16, **options
) -> set[str]:
    """All texts of 100 draws."""
    config = HardNegativesConfig(count=count, sources=sources or ("given", "exchanged", "replaced"))
    return {
        each
        for seed in range(100)
        for each in hard_negatives(config, text, given, truths, np.random.default_rng(seed), **options)
    }


def test_two_phrases_of_an_image_swap_a_word():
    text = "a red star left of a blue heart"
    assert drawn(text, PHRASES[:2], "exchanged") == {"a blue star left of a red heart"}
    assert drawn(text, PHRASES, "exchanged") == {
        "a blue star left of a red heart",
        "a green star left of a blue heart",
        "a red star left of a green heart",
    }


@pytest.mark.parametrize(
    ("text", "truths"),
    [
        ("a red star", ["a red star"]),
        ("a red star", ["a red heart"]),
        ("a red star", ["a small blue star"]),
        ("a red star", ["a blue wooden star"]),
        ("a red star", ["a heart and a star that is blue"]),
        ("a red star", ["the star is blue"]),
        ("a big dog", ["a large cat"]),  # the two words have about the same meaning
        ("a dog next to the cat", ["a dog", "the cat"]),  # articles are not attributes
        ("two dogs", ["a cat"]),
        ("a red and blue ball", ["a red and blue ball"]),
        ("a dog", ["a red star"]),
    ],
)
def test_words_are_not_swapped_if_the_text_might_still_be_true(text, truths):
    assert not drawn(text, truths, "exchanged")


def test_a_caption_with_both_words_apart_does_not_prevent_a_swap():
    for truth in ("a scene with a red star and a blue heart", "a blue heart on a star"):
        assert drawn("a red star", [truth], "exchanged") == {"a blue star"}, truth


def test_a_word_is_replaced_by_a_contradicting_one():
    assert drawn("the small dog left of me", [], "replaced") == {
        *(f"the {size} dog left of me" for size in ("large", "big", "huge")),
        "the small dog right of me",
    }
    colours = drawn("a gray cat", [], "replaced")
    assert {"a red cat", "an orange cat"} <= colours
    assert not colours & {"a gray cat", "a grey cat", "a orange cat"}
    assert "a blue star" not in drawn("a red star", ["a blue star"], "replaced")


@pytest.mark.parametrize(
    "text", ["the man left it on the table", "the right answer was there", "a dog", "with1 wheels"]
)
def test_words_with_another_meaning_are_not_replaced(text):
    found = drawn(text, [], "replaced")
    assert not {each for each in found if "left" in text and "right" in each} - {"the left answer was there"}


@pytest.mark.parametrize(
    "text", ["an orange on a plate", "a sliced orange", "black and white photo of a street", "a black white photo"]
)
def test_colour_words_with_another_meaning_are_not_replaced(text):
    assert not drawn(text, ["a red star", "a green heart", "a blue circle"])


def test_orange_is_a_colour_before_a_noun_and_after_is():
    assert "a red star" in drawn("an orange star", [], "replaced")
    assert "the star is red" in drawn("the star is orange", [], "replaced")


def test_each_kind_of_word_is_replaced_equally_often():
    config = HardNegativesConfig(sources=("replaced",))
    texts = [
        hard_negatives(config, "two red dogs left of me", (), (), np.random.default_rng(seed))[0] for seed in range(300)
    ]
    unchanged = [sum(word in text.split() for text in texts) for word in ("two", "red", "left")]
    assert all(170 < number < 230 for number in unchanged)


def test_given_hard_negatives_never_equal_a_caption_of_the_record():
    given = ("no star at all", "a star that is red", "a red star")
    assert drawn("a red star", ["a star that is red"], "given", given=given) == {"no star at all"}


def test_sources_alternate_and_texts_differ_from_the_caption_and_each_other():
    text, config = "a red star left of a blue heart", HardNegativesConfig(count=3)
    for seed in range(20):
        found = hard_negatives(config, text, ["no star", "no star", text], PHRASES[:2], np.random.default_rng(seed))
        assert len(set(found)) == 3
        assert text not in found
        assert {"no star", "a blue star left of a red heart"} <= set(found)


def test_texts_in_other_languages_have_only_given_hard_negatives():
    assert drawn("le chat orange", ["un chien red"], given=("un chien",), english=False) == {"un chien"}


def test_a_text_may_have_no_hard_negatives():
    assert not drawn("dog", [])


def test_no_hard_negative_is_true_of_its_object():
    for index in range(100):
        scene = compose_scene(0, "train", index)
        phrases = [looks_of(obj).indefinite() for obj in scene.objects]
        for obj, phrase in zip(scene.objects, phrases, strict=True):
            made = drawn(phrase, phrases, "exchanged", "replaced", count=3)
            assert made
            facts = {"a", "an", obj.size, obj.texture, obj.colour, obj.shape}
            assert not [text for text in made if set(text.split()) <= facts]
            assert all(len(set(text.split()) - set(phrase.split()) - {"a", "an"}) == 1 for text in made)
