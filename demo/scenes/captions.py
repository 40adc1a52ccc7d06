"""The captions of a scene in six languages: a list of its objects, and a sentence of how they lie.

English says how much is said, since its captions have a budget of words; the other languages say the same.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from demo.scenes.compose import Scene
from demo.scenes.describe import Looks, attribute_sets, describe_scene, looks_of
from demo.scenes.vocabulary import RELATIONS

MAX_PIECES = 28
"""Words and commas of an English caption, at most: 30 tokens with [CLS] and [SEP]."""

_DETAIL = attribute_sets("size texture colour shape", "texture colour shape", "size colour shape", "colour shape")
"""Attributes that a caption names of every object, most detail first."""

# Tables of words and clauses by their English names; the columns are German, French, Czech, Chinese and Japanese.

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

_CLAUSES = {
    "listing": ("eine Szene mit {dative}", "une scène avec {}", "scéna s {instrumental}", "图中有{}", "{}がある絵"),
    "only": ("nur {}", "seulement {}", "jenom {}", "只有{}", "{}だけがある"),
    "first": ("{}", "{}", "{}", "{}", "{}が"),
    "left of": ("links von {dative}", "à gauche d'{}", "nalevo od {genitive}", "{a}在{}的左边", "{}の左に{a}が"),
    "right of": ("rechts von {dative}", "à droite d'{}", "napravo od {genitive}", "{a}在{}的右边", "{}の右に{a}が"),
    "above": ("über {dative}", "au-dessus d'{}", "nad {instrumental}", "{a}在{}的上面", "{}の上に{a}が"),
    "below": ("unter {dative}", "au-dessous d'{}", "pod {instrumental}", "{a}在{}的下面", "{}の下に{a}が"),
    "also": ("und {}", "et {}", "a {}", "还有{}", "{}も"),
}
"""A list; a sentence on one object; the beginning of a longer sentence; and the clauses that add an object by its relation to
the one before, ``{a}``, or without one. Braces hold an object, in its first case or in the named one."""

_ENGLISH_CLAUSES = {"listing": "a scene with {}", "only": "only {}", "first": "{}", "also": "and {}"}
_ENGLISH_CLAUSES |= {relation: f"{relation} {{}}" for relation in RELATIONS}


class Case(NamedTuple):
    """The article and the ending of adjectives by gender; the gender is "" in a language without genders."""

    articles: dict[str, str]
    endings: dict[str, str]


class Language(NamedTuple):
    """Grammar of one language.

    Attributes:
        column: of the tables, from 1; 0 is English, which they translate.
        cases: in the order of the nouns' forms.
        conjunctions: between the objects of a list, and before the last one.
        order: the fields of :class:`Looks` as a noun phrase says them.
        space: between the words of a noun phrase.
        comma: between clauses.
        end: of a sentence.
        euphony: a pattern in a finished text and its replacement.
    """

    column: int
    cases: dict[str, Case]
    conjunctions: tuple[str, str]
    order: tuple[str, ...] = Looks._fields
    space: str = " "
    comma: str = " "
    end: str = ""
    euphony: tuple[str, str] = ("$^", "")


_GERMAN_CASES = {
    "nominative": Case({"m": "ein", "f": "eine", "n": "ein"}, {"m": "er", "f": "e", "n": "es"}),
    "dative": Case({"m": "einem", "f": "einer", "n": "einem"}, {"m": "en", "f": "en", "n": "en"}),
}
_CZECH_CASES = {
    "nominative": Case({}, {"m": "ý", "f": "á", "n": "é"}),
    "genitive": Case({}, {"m": "ého", "f": "é", "n": "ého"}),
    "instrumental": Case({}, {"m": "ým", "f": "ou", "n": "ým"}),
}
_FRENCH_ORDER = ("size", "shape", "colour", "texture")
_CHINESE_ORDER = ("size", "colour", "texture", "shape")

LANGUAGES = {
    "en": Language(0, {"": Case({"": "a"}, {})}, (", ", " and "), euphony=(r"\ba (?=[aeiou])", "an ")),
    "de": Language(1, _GERMAN_CASES, (", ", " und ")),
    "fr": Language(2, {"": Case({"m": "un", "f": "une"}, {})}, (", ", " et "), _FRENCH_ORDER),
    "cs": Language(3, _CZECH_CASES, (", ", " a "), euphony=(r"\bs (?=[szšž]|čt)", "se ")),
    "zh": Language(4, {"": Case({"": "一个"}, {})}, ("、", "和"), _CHINESE_ORDER, space="", comma="，"),
    "ja": Language(5, {"": Case({}, {})}, ("と", "と"), space="", comma="あり、", end="ある"),
}


def captions_by_language(scene: Scene) -> dict[str, list[str]]:
    """Two captions in each language: a list of the scene's objects, and a sentence of how they lie.

    Each names shape and colour of every object, and as much of texture and size as :data:`MAX_PIECES` leaves room for.
    """
    description = describe_scene(scene)
    links = description.links
    listed = _most_detailed(scene, description.listed, lambda looks: listing("en", looks))
    chain = _most_detailed(scene, description.chain, lambda looks: sentence("en", looks, links))
    return {language: [listing(language, listed), sentence(language, chain, links)] for language in LANGUAGES}


def reference_captions(scene: Scene) -> list[str]:
    """Captions that several people might write: the objects from left to right, in more and in less detail.

    Those that fit into :data:`MAX_PIECES`; the one with the least detail always does.
    """
    objects = sorted(scene.objects, key=lambda obj: obj.centre)
    texts = [_enumeration("en", [looks_of(obj, detail).indefinite() for obj in objects]) for detail in _DETAIL]
    return list(dict.fromkeys(text for text in texts if pieces(text) <= MAX_PIECES))


def pieces(text: str) -> int:
    """Number of words and punctuation marks."""
    return len(re.findall(r"\w+|[^\w\s]", text))


def _most_detailed(scene: Scene, order: Sequence[int], say: Callable[[list[Looks]], str]) -> list[Looks]:
    """Looks of the objects in as much detail as fits into a caption, or else in the least."""
    by_detail = [[looks_of(scene.objects[place], detail) for place in order] for detail in _DETAIL]
    return next((looks for looks in by_detail if pieces(say(looks)) <= MAX_PIECES), by_detail[-1])


def listing(language: str, objects: Sequence[Looks]) -> str:
    """A list of objects: "a scene with a red star, a blue heart and a green circle"."""
    return _euphonic(language, _clause(language, "listing", objects))


def sentence(language: str, objects: Sequence[Looks], links: Sequence[str | None]) -> str:
    """How objects lie: the n-th one stands in relation ``links[n]`` to the next one, or in no clear one (None)."""
    if not links:
        return _euphonic(language, _clause(language, "only", objects))
    clauses = [
        _clause(language, link or "also", [looks], prior)
        for link, (prior, looks) in zip(links, itertools.pairwise(objects), strict=True)
    ]
    if links[0] is None or "{a}" not in _template(language, links[0]):  # no clause names the first object
        clauses.insert(0, _clause(language, "first", objects[:1]))
    return _euphonic(language, LANGUAGES[language].comma.join(clauses) + LANGUAGES[language].end)


def _clause(language: str, name: str, objects: Sequence[Looks], prior: Looks | None = None) -> str:
    """A clause of the tables with objects filled in, in every case: the template takes those that it names."""
    in_cases = {
        case: _enumeration(language, [noun_phrase(language, looks, case) for looks in objects])
        for case in LANGUAGES[language].cases
    }
    first_case = next(iter(in_cases))
    named = {"a": noun_phrase(language, prior, first_case)} if prior else {}
    return _template(language, name).format(in_cases[first_case], **in_cases, **named)


def _template(language: str, name: str) -> str:
    return (_ENGLISH_CLAUSES[name], *_CLAUSES[name])[LANGUAGES[language].column]


def _enumeration(language: str, named: Sequence[str]) -> str:
    """Noun phrases joined by commas and, before the last one, by the language's "and"."""
    comma, conjunction = LANGUAGES[language].conjunctions
    *others, last = named
    return f"{comma.join(others)}{conjunction}{last}" if others else last


def _euphonic(language: str, text: str) -> str:
    return re.sub(*LANGUAGES[language].euphony, text)


def noun_phrase(language: str, looks: Looks, case: str) -> str:
    """An object in a case, with article and adjectives that agree: "einem kleinen roten Stern"."""
    assert looks.shape is not None
    grammar = LANGUAGES[language]
    articles, endings = grammar.cases[case]
    *nouns, last = (looks.shape, *_NOUNS[looks.shape])[grammar.column].split()
    gender = nouns.pop(0) if nouns else ""
    number = list(grammar.cases).index(case)
    words = {"shape": nouns[number] if number < len(nouns) else last}
    for name, adjective in looks._asdict().items():
        if adjective is not None and name != "shape":
            masculine, _, feminine = (adjective, *_ADJECTIVES[adjective])[grammar.column].partition("/")
            form = feminine if feminine and gender == "f" else masculine
            words[name] = form.replace("-", endings.get(gender, ""))
    article = [articles[gender]] if articles else []
    return grammar.space.join([*article, *(words[name] for name in grammar.order if name in words)])
