"""Generates the captions of a scene in six languages: a list of its objects, and a sentence about their arrangement.

English captions have a limit on the number of words, which determines the amount of detail. The other languages have the same
detail.
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
"""Maximum number of words and commas in an English caption: 30 tokens with [CLS] and [SEP]."""

_DETAIL = attribute_sets("size texture colour shape", "texture colour shape", "size colour shape", "colour shape")
"""Sets of attributes that a caption names for each object, most detailed first."""

# Tables of words and clauses by their English names. The columns are German, French, Czech, Chinese and Japanese.

_NOUNS = {
    "circle": ("m Kreis", "m cercle", "m kruh kruhu kruhem", "圆形", "丸"),
    "square": ("n Quadrat", "m carré", "m čtverec čtverce čtvercem", "正方形", "四角"),
    "triangle": ("n Dreieck", "m triangle", "m trojúhelník trojúhelníku trojúhelníkem", "三角形", "三角"),
    "star": ("m Stern", "f étoile", "f hvězda hvězdy hvězdou", "星形", "星"),
    "cross": ("n Kreuz", "f croix", "m kříž kříže křížem", "十字形", "十字"),
    "diamond": ("f Raute", "m losange", "m kosočtverec kosočtverce kosočtvercem", "菱形", "ひし形"),
    "heart": ("n Herz Herzen", "m cœur", "n srdce srdce srdcem", "心形", "ハート"),
}
"""Gender, if the language has genders, and a form for each case. The last form is also used for all following cases."""

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
"""A stem to which the ending of the case is added ("klein-"), masculine/feminine forms, or an invariable word."""

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
"""Templates of a list, of a sentence about one object, of the beginning of a longer sentence, and of the clauses that add an
object, with or without its relation to the previous object ``{a}``. Braces are replaced by an object, in the first case or in the
named case."""

_ENGLISH_CLAUSES = {"listing": "a scene with {}", "only": "only {}", "first": "{}", "also": "and {}"}
_ENGLISH_CLAUSES |= {relation: f"{relation} {{}}" for relation in RELATIONS}


class Case(NamedTuple):
    """A grammatical case: the article and the ending of adjectives, by gender. In a language without genders, the gender is
    ""."""

    articles: dict[str, str]
    endings: dict[str, str]


class Language(NamedTuple):
    """Grammar of one language.

    Attributes:
        column: column of the language in the tables, from 1; 0 is English, the language of the keys.
        cases: cases in the order of the forms of nouns.
        conjunctions: separators between the objects of a list, and before the last object.
        order: fields of :class:`Looks` in the order of a noun phrase.
        space: separator of the words of a noun phrase.
        comma: separator of clauses.
        end: end of a sentence.
        euphony: a pattern that is replaced in a finished text, and its replacement.
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
    """Returns two captions in each language: a list of the objects of a scene, and a sentence about their arrangement.

    Each caption names the shape and colour of all objects, and also texture and size if :data:`MAX_PIECES` allows.
    """
    description = describe_scene(scene)
    links = description.links
    listed = _most_detailed(scene, description.listed, lambda looks: listing("en", looks))
    chain = _most_detailed(scene, description.chain, lambda looks: sentence("en", looks, links))
    return {language: [listing(language, listed), sentence(language, chain, links)] for language in LANGUAGES}


def reference_captions(scene: Scene) -> list[str]:
    """Returns captions that several people might write: the objects from left to right, in more and less detail.

    Captions longer than :data:`MAX_PIECES` are skipped; the caption with the least detail is never too long.
    """
    objects = sorted(scene.objects, key=lambda obj: obj.centre)
    texts = [_enumeration("en", [looks_of(obj, detail).indefinite() for obj in objects]) for detail in _DETAIL]
    return list(dict.fromkeys(text for text in texts if pieces(text) <= MAX_PIECES))


def pieces(text: str) -> int:
    """Returns the number of words and punctuation marks."""
    return len(re.findall(r"\w+|[^\w\s]", text))


def _most_detailed(scene: Scene, order: Sequence[int], say: Callable[[list[Looks]], str]) -> list[Looks]:
    """Returns the looks of the objects in the greatest detail for which the caption from ``say`` is short enough, or else in the
    least detail."""
    by_detail = [[looks_of(scene.objects[index], detail) for index in order] for detail in _DETAIL]
    return next((looks for looks in by_detail if pieces(say(looks)) <= MAX_PIECES), by_detail[-1])


def listing(language: str, objects: Sequence[Looks]) -> str:
    """Returns a list of objects: "a scene with a red star, a blue heart and a green circle"."""
    return _euphonic(language, _clause(language, "listing", objects))


def sentence(language: str, objects: Sequence[Looks], links: Sequence[str | None]) -> str:
    """Returns a sentence about the arrangement of objects. ``links[n]`` is the relation of object n to the next object, or None
    if no relation is clear."""
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
    """Fills objects into a clause template. The template selects the grammatical case of each object."""
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
    """Joins noun phrases with commas and, before the last one, the word for "and"."""
    comma, conjunction = LANGUAGES[language].conjunctions
    *others, last = named
    return f"{comma.join(others)}{conjunction}{last}" if others else last


def _euphonic(language: str, text: str) -> str:
    return re.sub(*LANGUAGES[language].euphony, text)


def noun_phrase(language: str, looks: Looks, case: str) -> str:
    """Returns a noun phrase in a grammatical case, with matching article and adjectives: "einem kleinen roten Stern"."""
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
