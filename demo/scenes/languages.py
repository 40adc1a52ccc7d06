"""Words and grammar of captions in six languages: a list of objects, and a sentence of how they lie."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import NamedTuple

from demo.scenes.describe import Looks

_COLUMNS = ("de", "fr", "cs", "zh", "ja")

_NOUNS = {
    "circle": ("m Kreis", "m cercle", "m kruh kruhu kruhem", "圆形", "丸"),
    "square": ("n Quadrat", "m carré", "m čtverec čtverce čtvercem", "正方形", "四角"),
    "triangle": ("n Dreieck", "m triangle", "m trojúhelník trojúhelníku trojúhelníkem", "三角形", "三角"),
    "star": ("m Stern", "f étoile", "f hvězda hvězdy hvězdou", "星形", "星"),
    "cross": ("n Kreuz", "f croix", "m kříž kříže křížem", "十字形", "十字"),
    "diamond": ("f Raute", "m losange", "m kosočtverec kosočtverce kosočtvercem", "菱形", "ひし形"),
    "heart": ("n Herz Herzen", "m cœur", "n srdce srdce srdcem", "心形", "ハート"),
}
"""Gender, where there is one, and a form for each case; the last form also stands for the cases after it."""

_ADJECTIVES = {
    "small": ("klein-", "petit/petite", "mal-", "小的", "小さい"),
    "large": ("groß-", "grand/grande", "velk-", "大的", "大きい"),
    "striped": ("gestreift-", "rayé/rayée", "pruhovan-", "条纹", "しま模様の"),
    "dotted": ("gepunktet-", "à pois", "puntíkovan-", "圆点", "水玉模様の"),
    "checked": ("kariert-", "à carreaux", "kostkovan-", "格子", "チェック柄の"),
    "red": ("rot-", "rouge", "červen-", "红色", "赤い"),
    "orange": ("orangefarben-", "orange", "oranžov-", "橙色", "オレンジ色の"),
    "yellow": ("gelb-", "jaune", "žlut-", "黄色", "黄色い"),
    "green": ("grün-", "vert/verte", "zelen-", "绿色", "緑色の"),
    "cyan": ("türkisfarben-", "turquoise", "tyrkysov-", "青色", "水色の"),
    "blue": ("blau-", "bleu/bleue", "modr-", "蓝色", "青い"),
    "purple": ("violett-", "violet/violette", "fialov-", "紫色", "紫色の"),
    "pink": ("rosafarben-", "rose", "růžov-", "粉色", "ピンク色の"),
}
"""A stem that takes the ending of the case ("klein-"), masculine/feminine, or a word that never changes."""


class Case(NamedTuple):
    """The article and the ending of adjectives by gender; the gender is "" in a language without genders."""

    articles: dict[str, str]
    endings: dict[str, str]


class Language(NamedTuple):
    """Grammar of one language.

    Attributes:
        order: the fields of :class:`Looks` as a noun phrase says them.
        cases: in the order of the nouns' forms. Templates name the case in which they want an object.
        listing: template of a list, with the case of the objects in it.
        conjunctions: between the objects of a list, and before the last one.
        only: template of a sentence on one object.
        first: template of the object that a sentence begins with, unless the first clause names it.
        relations: template of the clause that adds an object; ``{subject}`` is the object before it.
        also: the same, where the object stands in no clear relation to the one before it.
        comma: between clauses.
        end: of a sentence.
        space: between the words of a noun phrase.
        euphony: a pattern in a finished text and its replacement.
    """

    order: tuple[str, ...]
    cases: dict[str, Case]
    listing: tuple[str, str]
    conjunctions: tuple[str, str]
    only: str
    relations: dict[str, str]
    also: str
    first: str = "{nominative}"
    comma: str = " "
    end: str = ""
    space: str = " "
    euphony: tuple[str, str] = ("$^", "")


ENGLISH = Language(
    order=Looks._fields,
    cases={"nominative": Case({"": "a"}, {})},
    listing=("a scene with {}", "nominative"),
    conjunctions=(", ", " and "),
    only="only {nominative}",
    relations={name: f"{name} {{nominative}}" for name in ("left of", "right of", "above", "below")},
    also="and {nominative}",
    euphony=(r"\ba (?=[aeiou])", "an "),
)

LANGUAGES = {
    "en": ENGLISH,
    "de": Language(
        order=Looks._fields,
        cases={
            "nominative": Case({"m": "ein", "f": "eine", "n": "ein"}, {"m": "er", "f": "e", "n": "es"}),
            "dative": Case({"m": "einem", "f": "einer", "n": "einem"}, {"m": "en", "f": "en", "n": "en"}),
        },
        listing=("eine Szene mit {}", "dative"),
        conjunctions=(", ", " und "),
        only="nur {nominative}",
        relations={
            "left of": "links von {dative}",
            "right of": "rechts von {dative}",
            "above": "über {dative}",
            "below": "unter {dative}",
        },
        also="und {nominative}",
    ),
    "fr": Language(
        order=("size", "shape", "colour", "texture"),
        cases={"nominative": Case({"m": "un", "f": "une"}, {})},
        listing=("une scène avec {}", "nominative"),
        conjunctions=(", ", " et "),
        only="seulement {nominative}",
        relations={
            "left of": "à gauche d'{nominative}",
            "right of": "à droite d'{nominative}",
            "above": "au-dessus d'{nominative}",
            "below": "au-dessous d'{nominative}",
        },
        also="et {nominative}",
    ),
    "cs": Language(
        order=Looks._fields,
        cases={
            "nominative": Case({}, {"m": "ý", "f": "á", "n": "é"}),
            "genitive": Case({}, {"m": "ého", "f": "é", "n": "ého"}),
            "instrumental": Case({}, {"m": "ým", "f": "ou", "n": "ým"}),
        },
        listing=("scéna s {}", "instrumental"),
        conjunctions=(", ", " a "),
        only="jenom {nominative}",
        relations={
            "left of": "nalevo od {genitive}",
            "right of": "napravo od {genitive}",
            "above": "nad {instrumental}",
            "below": "pod {instrumental}",
        },
        also="a {nominative}",
        euphony=(r"\bs (?=[szšž]|čt)", "se "),
    ),
    "zh": Language(
        order=("size", "colour", "texture", "shape"),
        cases={"nominative": Case({"": "一个"}, {})},
        listing=("图中有{}", "nominative"),
        conjunctions=("、", "和"),
        only="只有{nominative}",
        relations={
            "left of": "{subject}在{nominative}的左边",
            "right of": "{subject}在{nominative}的右边",
            "above": "{subject}在{nominative}的上面",
            "below": "{subject}在{nominative}的下面",
        },
        also="还有{nominative}",
        comma="，",
        space="",
    ),
    "ja": Language(
        order=Looks._fields,
        cases={"nominative": Case({}, {})},
        listing=("{}がある絵", "nominative"),
        conjunctions=("と", "と"),
        only="{nominative}だけがある",
        relations={
            "left of": "{nominative}の左に{subject}が",
            "right of": "{nominative}の右に{subject}が",
            "above": "{nominative}の上に{subject}が",
            "below": "{nominative}の下に{subject}が",
        },
        also="{nominative}も",
        first="{nominative}が",
        comma="あり、",
        end="ある",
        space="",
    ),
}


def listing(language: str, objects: Sequence[Looks]) -> str:
    """A list of objects: "a scene with a red star, a blue heart and a green circle"."""
    grammar = LANGUAGES[language]
    template, case = grammar.listing
    named = [noun_phrase(language, looks, case) for looks in objects]
    return re.sub(*grammar.euphony, template.format(enumeration(language, named)))


def enumeration(language: str, named: Sequence[str]) -> str:
    """Noun phrases joined by commas and, before the last one, by the language's "and"."""
    comma, conjunction = LANGUAGES[language].conjunctions
    *others, last = named
    return f"{comma.join(others)}{conjunction}{last}" if others else last


def sentence(language: str, objects: Sequence[Looks], links: Sequence[str | None]) -> str:
    """How objects lie: the n-th one stands in relation ``links[n]`` to the next one, or in no clear one (None)."""
    grammar = LANGUAGES[language]

    def say(template: str, looks: Looks, subject: Looks) -> str:
        cases = {case: noun_phrase(language, looks, case) for case in grammar.cases}
        return template.format(subject=noun_phrase(language, subject, "nominative"), **cases)

    if not links:
        text = say(grammar.only, objects[0], objects[0])
    else:
        clauses = [
            say(grammar.also if link is None else grammar.relations[link], looks, subject)
            for link, (subject, looks) in zip(links, itertools.pairwise(objects), strict=True)
        ]
        if links[0] is None or "{subject}" not in grammar.relations[links[0]]:
            clauses.insert(0, say(grammar.first, objects[0], objects[0]))
        text = grammar.comma.join(clauses) + grammar.end
    return re.sub(*grammar.euphony, text)


def noun_phrase(language: str, looks: Looks, case: str) -> str:
    """An object in a case, with article and adjectives that agree: "einem kleinen roten Stern"."""
    assert looks.shape is not None
    grammar = LANGUAGES[language]
    gender, noun = _noun(language, looks.shape, list(grammar.cases).index(case))
    articles, endings = grammar.cases[case]
    words = {"shape": noun}
    for name in ("size", "texture", "colour"):
        adjective = getattr(looks, name)
        if adjective is not None:
            words[name] = _adjective(language, adjective, gender, endings.get(gender, ""))
    article = [articles[gender]] if articles else []
    return grammar.space.join([*article, *(words[name] for name in grammar.order if name in words)])


def _noun(language: str, shape: str, case: int) -> tuple[str, str]:
    """Gender and form of a noun in the n-th case."""
    if language == "en":
        return "", shape
    *gender, forms = _NOUNS[shape][_COLUMNS.index(language)].split(maxsplit=1)
    listed = forms.split()
    return "".join(gender), listed[min(case, len(listed) - 1)]


def _adjective(language: str, word: str, gender: str, ending: str) -> str:
    if language == "en":
        return word
    masculine, _, feminine = _ADJECTIVES[word][_COLUMNS.index(language)].partition("/")
    form = feminine if feminine and gender == "f" else masculine
    return form.replace("-", ending)
