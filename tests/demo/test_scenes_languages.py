"""Scenes in six languages: the texts have the same meaning and the right word forms in each."""

from __future__ import annotations

import re

import pytest
from transformers import AutoTokenizer

from demo.scenes.captions import LANGUAGES, captions_by_language, listing, sentence
from demo.scenes.compose import compose_scene
from demo.scenes.describe import Looks
from demo.scenes.vocabulary import COLOURS, RELATIONS, SHAPES, SIZES
from tests.demo.scene_texts import COUNTS, read

STAR = Looks("small", "dotted", "red", "star")
HEART = Looks(None, None, "blue", "heart")
CIRCLE = Looks("large", "striped", "green", "circle")
CHAIN = ([STAR, HEART, CIRCLE], ["left of", None])


@pytest.mark.parametrize(
    ("language", "list_text", "sentence_text"),
    [
        (
            "en",
            "a scene with a small dotted red star, a blue heart and a large striped green circle",
            "a small dotted red star left of a blue heart and a large striped green circle",
        ),
        (
            "de",
            "eine Szene mit einem kleinen gepunkteten roten Stern, einem blauen Herzen und einem großen gestreiften grünen Kreis",
            "ein kleiner gepunkteter roter Stern links von einem blauen Herzen und ein großer gestreifter grüner Kreis",
        ),
        (
            "fr",
            "une scène avec une petite étoile rouge à pois, un cœur bleu et un grand cercle vert rayé",
            "une petite étoile rouge à pois à gauche d'un cœur bleu et un grand cercle vert rayé",
        ),
        (
            "cs",
            "scéna s malou puntíkovanou červenou hvězdou, modrým srdcem a velkým pruhovaným zeleným kruhem",
            "malá puntíkovaná červená hvězda nalevo od modrého srdce a velký pruhovaný zelený kruh",
        ),
        (
            "zh",
            "图中有一个小的红色圆点星形、一个蓝色心形和一个大的绿色条纹圆形",
            "一个小的红色圆点星形在一个蓝色心形的左边，还有一个大的绿色条纹圆形",
        ),
        (
            "ja",
            "小さい水玉模様の赤い星と青いハートと大きいしま模様の緑色の丸がある絵",
            "青いハートの左に小さい水玉模様の赤い星があり、大きいしま模様の緑色の丸もある",
        ),
    ],
    ids=lambda value: value[:2],
)
def test_captions_agree_in_gender_case_and_order(language, list_text, sentence_text):
    assert listing(language, CHAIN[0]) == list_text
    assert sentence(language, *CHAIN) == sentence_text


def test_every_relation_is_expressed_in_every_language():
    for language in LANGUAGES:
        assert len({sentence(language, [STAR, HEART], [relation]) for relation in RELATIONS}) == len(RELATIONS)


def test_czech_prepositions_govern_their_case_and_are_vocalised():
    assert sentence("cs", [HEART, STAR], ["above"]) == "modré srdce nad malou puntíkovanou červenou hvězdou"
    assert listing("cs", [Looks(None, None, "green", "heart")]) == "scéna se zeleným srdcem"
    assert listing("cs", [Looks(None, None, "red", "square")]) == "scéna s červeným čtvercem"
    assert listing("cs", [Looks(None, None, None, "square")]) == "scéna se čtvercem"


def test_a_sentence_about_one_object_names_only_it():
    assert {language: sentence(language, [HEART], []) for language in LANGUAGES} == {
        "en": "only a blue heart",
        "de": "nur ein blaues Herz",
        "fr": "seulement un cœur bleu",
        "cs": "jenom modré srdce",
        "zh": "只有一个蓝色心形",
        "ja": "青いハートだけがある",
    }
    assert sentence("en", [Looks(colour="orange", shape="star")], []) == "only an orange star"


def test_different_looks_have_different_words_in_every_language():
    looks = [
        Looks(size, texture, colour, shape)
        for size in SIZES
        for texture in ("striped", "dotted", "checked")
        for colour in COLOURS
        for shape in SHAPES
    ]
    for language in LANGUAGES:
        assert len({listing(language, [one]) for one in looks}) == len(looks)


def test_the_same_objects_are_named_in_every_language():
    for index in range(30):
        scene = compose_scene(0, "train", index)
        captions = captions_by_language(scene)
        assert captions.keys() == LANGUAGES.keys()
        names = {
            "circle": ("Kreis", "cercle", "kruh", "圆形", "丸"),
            "heart": ("Herz", "cœur", "srdc", "心形", "ハート"),
        }
        for shape, words in names.items():
            count = sum(obj.shape == shape for obj in scene.objects)
            for language, word in zip(("de", "fr", "cs", "zh", "ja"), words, strict=True):
                assert captions[language][0].count(word) == count, captions


def test_records_and_the_tokenizer_cover_all_languages(folder):
    translated = read(folder, "multilingual_train")
    assert len(translated) == COUNTS["train"]
    for row, english in zip(translated, read(folder, "retrieval_train"), strict=True):
        assert row["caption"]["en"] == english["caption"]
        assert (row["image"], row["image_id"]) == (english["image"], english["image_id"])
        assert row["caption"].keys() == LANGUAGES.keys()
    tokenizer = AutoTokenizer.from_pretrained(str(folder / "tokenizer_multilingual"))
    for texts in translated[0]["caption"].values():
        for text in texts:
            assert tokenizer.unk_token_id not in tokenizer(text)["input_ids"]
            assert len(tokenizer(text)["input_ids"]) <= 64
    assert not re.search(r"[一-鿿]", (folder / "tokenizer" / "vocab.txt").read_text(encoding="utf-8"))
