"""Scenes in six languages: the same is said in each, with the right forms."""

from __future__ import annotations

import json
import re

import pytest
from transformers import AutoTokenizer

from demo.scenes import build, compose_scene, wording_cs, wording_de, wording_fr, wording_ja, wording_zh
from demo.scenes.describe import Looks
from demo.scenes.languages import LANGUAGES, captions_by_language
from demo.scenes.vocabulary import COLOURS, RELATIONS, SHAPES, SIZES

STAR = Looks("small", "dotted", "red", "star")
HEART = Looks(None, None, "blue", "heart")
CIRCLE = Looks("large", "striped", "green", "circle")
CHAIN = ([STAR, HEART, CIRCLE], ["left of", None])


@pytest.mark.parametrize(
    ("language", "listing", "sentence"),
    [
        (
            wording_de,
            "eine Szene mit einem kleinen gepunkteten roten Stern, einem blauen Herzen und einem großen gestreiften grünen Kreis",
            "ein kleiner gepunkteter roter Stern links von einem blauen Herzen und ein großer gestreifter grüner Kreis",
        ),
        (
            wording_fr,
            "une scène avec une petite étoile rouge à pois, un cœur bleu et un grand cercle vert rayé",
            "une petite étoile rouge à pois à gauche d'un cœur bleu et un grand cercle vert rayé",
        ),
        (
            wording_cs,
            "scéna s malou puntíkovanou červenou hvězdou, modrým srdcem a velkým pruhovaným zeleným kruhem",
            "malá puntíkovaná červená hvězda nalevo od modrého srdce a velký pruhovaný zelený kruh",
        ),
        (
            wording_zh,
            "图中有一个小的红色圆点星形、一个蓝色心形和一个大的绿色条纹圆形",
            "一个小的红色圆点星形在一个蓝色心形的左边，还有一个大的绿色条纹圆形",
        ),
        (
            wording_ja,
            "小さい水玉模様の赤い星と青いハートと大きいしま模様の緑色の丸がある絵",
            "青いハートの左に小さい水玉模様の赤い星があり、大きいしま模様の緑色の丸もある",
        ),
    ],
    ids=["de", "fr", "cs", "zh", "ja"],
)
def test_captions_agree_in_gender_case_and_order(language, listing, sentence):
    assert language.listing(CHAIN[0]) == listing
    assert language.sentence(*CHAIN) == sentence


def test_every_relation_is_said_in_every_language():
    for language in (wording_de, wording_fr, wording_cs, wording_zh, wording_ja):
        said = {language.sentence([STAR, HEART], [each]) for each in RELATIONS}
        assert len(said) == len(RELATIONS)


def test_czech_prepositions_govern_their_case_and_are_vocalised():
    assert wording_cs.sentence([HEART, STAR], ["above"]) == "modré srdce nad malou puntíkovanou červenou hvězdou"
    assert wording_cs.listing([Looks(None, None, "green", "heart")]) == "scéna se zeleným srdcem"
    assert wording_cs.listing([Looks(None, None, "red", "square")]) == "scéna s červeným čtvercem"
    assert wording_cs.listing([Looks(None, None, None, "square")]) == "scéna se čtvercem"


def test_a_scene_of_one_object_is_said_alone():
    only = [HEART]
    assert wording_de.sentence(only, []) == "nur ein blaues Herz"
    assert wording_fr.sentence(only, []) == "seulement un cœur bleu"
    assert wording_cs.sentence(only, []) == "jenom modré srdce"
    assert wording_zh.sentence(only, []) == "只有一个蓝色心形"
    assert wording_ja.sentence(only, []) == "青いハートだけがある"


def test_different_looks_are_different_words_in_every_language():
    looks = [
        Looks(size, texture, colour, shape)
        for size in SIZES
        for texture in ("striped", "dotted", "checked")
        for colour in COLOURS
        for shape in SHAPES
    ]
    for language in (wording_de, wording_fr, wording_cs, wording_zh, wording_ja):
        assert len({language.listing([each]) for each in looks}) == len(looks)


def test_the_same_objects_are_named_in_every_language():
    for index in range(30):
        scene = compose_scene(0, "train", index)
        found = captions_by_language(scene)
        assert tuple(found) == LANGUAGES
        names = {
            "circle": ("Kreis", "cercle", "kruh", "圆形", "丸"),
            "heart": ("Herz", "cœur", "srdc", "心形", "ハート"),
        }
        for shape, words in names.items():
            count = sum(thing.shape == shape for thing in scene.objects)
            for language, word in zip(("de", "fr", "cs", "zh", "ja"), words, strict=True):
                assert found[language][0].count(word) == count, (found["en"], found[language])


def test_records_and_the_tokenizer_of_all_languages(tmp_path):
    build(tmp_path, seed=0, train=30, val=3, test=3, size=32)
    rows = [
        json.loads(line) for line in (tmp_path / "multilingual_train.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert len(rows) == 30
    plain = [json.loads(line) for line in (tmp_path / "retrieval_train.jsonl").read_text(encoding="utf-8").splitlines()]
    for row, english in zip(rows, plain, strict=True):
        assert row["caption"]["en"] == english["caption"]
        assert (row["image"], row["image_id"]) == (english["image"], english["image_id"])
        assert set(row["caption"]) == set(LANGUAGES)
    tokenizer = AutoTokenizer.from_pretrained(str(tmp_path / "tokenizer_multilingual"))
    for texts in rows[0]["caption"].values():
        for text in texts:
            assert tokenizer.unk_token_id not in tokenizer(text)["input_ids"]
            assert len(tokenizer(text)["input_ids"]) <= 64
    assert not re.search(r"[一-鿿]", (tmp_path / "tokenizer" / "vocab.txt").read_text(encoding="utf-8"))
