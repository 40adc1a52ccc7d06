"""The rules of the caption tokenizer (:mod:`metrics.captions.ptb`), which define what a token is and how it is output.

At each position, the rule with the longest match applies. The length of a match includes the context that must follow the token.
If several matches are equally long, the first rule applies, so the order matters only for rules that can match the same text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from metrics.captions import characters


class Rule(NamedTuple):
    """A rule for one type of token."""

    pattern: re.Pattern[str]
    """Group 1 matches the token. The rest matches the context that must follow."""
    output: Callable[[str], str]
    """Maps the text of group 1 to a token, or to several tokens separated by spaces; empty if the text is dropped."""


def _any_of(words: str) -> str:
    """Returns a pattern that matches the longest possible word in ``words``, a list separated by spaces."""
    return "(?:" + "|".join(sorted(words.split(), key=len, reverse=True)) + ")"


def _any_of_any_case(words: str) -> str:
    return _any_case(_any_of(words))


def _any_of_capitalized(words: str) -> str:
    """Returns a pattern that matches one of ``words``. Only the case of the first letter is significant."""
    return "(?:" + "|".join(word[0] + _any_case(word[1:]) for word in words.split()) + ")"


def _any_case(pattern: str) -> str:
    return f"(?ai:{pattern})"


def _class_of(ranges: str) -> str:
    return "".join("-".join(f"\\u{end}" for end in part.split("-")) for part in ranges.split())


# How tokens are output.

BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
FRACTIONS = {"¼": "1/4", "½": "1/2", "¾": "3/4", "⅓": "1/3", "⅔": "2/3"}
CURRENCIES = {"¢": "cents", "£": "#", "¤": "$", "\x80": "$", "₠": "$", "€": "$"}
ENTITIES = {"&lt;": "<", "&gt;": ">", "&amp;": "&", "&LT;": "<", "&GT;": ">", "&AMP;": "&"}
SPLIT_WORDS = ("cannot", "gonna", "gotta", "lemme", "gimme", "wanna")
"""Words that are split into two tokens after the third letter."""
QUOTES = {"‘": "`", "’": "'", "‛": "`", "“": "``", "”": "''", "‹": "`", "›": "'", "«": "``", "»": "''"}
QUOTES |= {"\x91": "`", "\x92": "'", "\x93": "``", "\x94": "''"}
SOFT_HYPHEN = "\xad"


def _as_is(text: str) -> str:
    return text


def _dropped(text: str) -> str:
    return ""


def _as(token: str) -> Callable[[str], str]:
    return lambda text: token


def _looked_up(table: Mapping[str, str]) -> Callable[[str], str]:
    return lambda text: table[text]


def _each_looked_up(table: Mapping[str, str]) -> Callable[[str], str]:
    translation = str.maketrans(dict(table))
    return lambda text: text.translate(translation)


def _word(text: str) -> str:
    return text.replace(SOFT_HYPHEN, "").replace("&amp;", "&").replace("&AMP;", "&") or "-"


def _straight(text: str) -> str:
    """Replaces curly apostrophes and ticks with straight ones."""
    return re.sub(_TICK, "`", re.sub("[’\x92]|&apos;", "'", text))


def _in_one(text: str) -> str:
    """Replaces spaces with no-break spaces, so that the text stays one token."""
    return text.replace(" ", "\xa0")


def _round_in_one(text: str) -> str:
    return _in_one(text).replace("(", "-lrb-").replace(")", "-rrb-")


# Parts of patterns.

_LETTERS = "A-Za-z" + _class_of(characters.LETTERS)
_DIGITS = "0-9" + _class_of(characters.DIGITS)
_MARKS = SOFT_HYPHEN + _class_of(characters.MARKS)
_LETTER = f"[{_LETTERS}]"
_DIGIT = f"[{_DIGITS}]"
_ALNUM = f"[{_LETTERS}{_DIGITS}]"
_ENTITY = "&(?ai:[aeiou](?:acute|grave|uml));"
_START = f"(?:[{_LETTERS}{_MARKS}]|{_ENTITY})"
_CONTINUED = f"(?:[{_LETTERS}{_MARKS}{_DIGITS}]|{_ENTITY})"
_BLANK = "[ \t\xa0\u2000-\u200a\u3000]"
_GAP = f"(?:{_BLANK}|\n)"
_HYPHEN = "[-_\u058a\u2010\u2011]"
_APOSTROPHE = "(?:['’\x92]|&apos;|&APOS;)"
_TICK = "[`‘‛\x91]"
_APOSTROPHE_OR_TICK = f"(?:{_APOSTROPHE}|{_TICK})"

_WORD = f"{_START}{_CONTINUED}*(?:[.!?]{_START}{_CONTINUED}*)*"
_ENDING = _APOSTROPHE + _any_case("[msd]|re|ve|ll")
_NOT = f"[nN]{_APOSTROPHE_OR_TICK}[tT]"
_ELISION = f"[dDoOlL]{_APOSTROPHE_OR_TICK}{_ALNUM}"  # d'Artagnan, o'clock, l'eau
_JOINED = f"(?:{_ELISION})?{_ALNUM}+(?:{_HYPHEN}(?:{_ELISION})?{_ALNUM}+)*"
_INITIALS = r"[A-Za-z](?:\.[A-Za-z])+\."
_HYPHENATED = f"[A-Za-z0-9][A-Za-z0-9.,{SOFT_HYPHEN}]*(?:-(?:{_INITIALS}|[A-Za-z0-9{SOFT_HYPHEN}]+))+"  # 9,000-foot
_CAPITALS = "[A-Z]+(?:(?:&amp;|&AMP;|[+&])[A-Z]+)+"  # AT&T
_BESIDE_SLASH = "[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}"

_NUMBER = f"(?:{_DIGIT}*(?:[.:,\u066b\u066c{SOFT_HYPHEN}]{_DIGIT}+)+|{_DIGIT}+)"
_DATE = f"{_DIGIT}{{1,2}}[-/]{_DIGIT}{{1,2}}[-/]{_DIGIT}{{2,4}}"
_FRACTION = rf"(?:{_DIGIT}{{1,4}}[- \xa0])?{_DIGIT}{{1,4}}(?:\\?/|\u2044){_DIGIT}{{1,4}}"
_PHONE_START = r"(?:\+{0,2}[0-9]{2,4}[- \xa0])?[0-9]{2,4}[- \xa0]"
_PHONE_START = rf"(?:\([0-9]{{2,3}}\)[ \xa0]?|{_PHONE_START}|\+{{1,2}}[0-9]{{2,4}}[- \xa0])"
_PHONE = rf"{_PHONE_START}[0-9]{{3,4}}[- \xa0]?[0-9]{{3,5}}"
_PHONE_WITH_DOTS = r"(?:\+{0,2}[0-9]{2,4}\.)?[0-9]{2,4}\.[0-9]{3,4}\.[0-9]{3,5}"

_NAME = "[A-Za-z][A-Za-z0-9_:.-]*"
_VALUE = "\"[^\">\n]*\"?|'[^'>\n]*'?"
_TAG = rf"<(?:[!?][A-Za-z-][^>\n]*|{_NAME}(?: +{_NAME}(?:=(?:{_VALUE}))?)* */?|/{_NAME} *)>"
_IN_URL = r"[^ \t\n\"<>|(){}]"
_IN_PATH = r"[^ \t\n\"<>|()]"
_LAST_IN_URL = r"[^ \t\n\"<>|.!?(){},-]"
_URL = rf"[hH][tT][tT][pP][sS]?://{_IN_URL}+{_LAST_IN_URL}"
_IN_SITE = r"[^ \t\n\"`'<>|.!?(){},-_$]"  # "," to "_" is a range, as observed: no digits, capitals or "@" either
_SITE = rf"(?:[wW]{{3}}\.(?:[^ \t\n\"<>|.!?(){{}},]+\.)+[A-Za-z]{{2,4}}|(?:{_IN_SITE}+\.)+(?ai:com|net|org|edu))"
_IN_DOMAIN = r"[^ \t\n\"<>|().{}\xa0]"
_MAIL = rf"(?:<|&lt;)?[A-Za-z0-9][^ \t\n\"<>|(){{}}\xa0]*@(?:{_IN_DOMAIN}+\.)*{_IN_DOMAIN}+(?:>|&gt;)?"
_FILE_ENDING = _any_of_any_case(
    """bat bmp c cgi class cpp dll doc docx exe gif gz h htm html jar java jpeg jpg mov mp3 pdf php pl png ppt ps py sql tar txt
    wav x xml zip"""
)

_TITLES = _any_of_any_case(
    """adj adm adv alex assoc asst atty attys ave brig capt cf cie cmdr col comdr cpl dept det dr drs elec ens ft gen gov govs hon
    insp invt jos lieut lt maj messrs mlle mme mr mrs ms msgr mt natl pfc ph pres prof profs pvt rep reps rev sen sens sfc sgt spc
    st ste supt supts treas vs wm"""
)
_LAST_WORDS = _any_of_any_case(
    """al ala apr ariz assn aug bhd bldg blvd bros calif co colo conn corp cos ct dak dec ed[.]d esq est etc ext feb fla fri ga
    inc ind intl jan jr jul jun kan kans ky ltd mar md mich minn mo mon mont neb nev nov oct okla penn ph[.]d plc rd rt sep sept
    seq sq sr sys tel tenn thu thurs tue tues univ va vt wed wis wisc wyo"""
)
_LAST_NAMES = _any_of_capitalized("Ark Az Del Ill La Mass Miss Ore Pa Tex Wash")
_BEFORE_NUMBER = _any_of_any_case("art ca fig figs no nos op pp prop")
_SENTENCE_START = _any_of_capitalized(
    """A About According Additionally After An As At But Earlier He Her Here However If In It Last Many More Mr[.] Ms[.] Now Once
    One Other Our She Since So Some Such That The Their Then There These They This We What When While Yet You"""
)
_APOSTROPHIZED = _any_case(
    f"{_APOSTROPHE}n{_APOSTROPHE}?|[ldj]{_APOSTROPHE}|(?:dunkin|somethin|ol){_APOSTROPHE}|{_APOSTROPHE}(?:em|till?|cause|[2-9]0s)"
    f"|c{_APOSTROPHE}est|c'mon|s'mores|li'l|nat'l|nor'easter|ev'ry|e{_APOSTROPHE}er|o{_APOSTROPHE_OR_TICK}o|d{_APOSTROPHE_OR_TICK}ye"
)


def _rule(token: str, output: Callable[[str], str] = _as_is, context: str = "") -> Rule:
    return Rule(re.compile(f"({token}){context}"), output)


RULES = (
    _rule(f"{_BLANK}+", _dropped),
    # Words, and the endings that are split off.
    *(_rule(_any_case(word[:3]), context=_any_case(word[3:])) for word in SPLIT_WORDS),
    _rule("'[tT]", context=_any_case("is|was")),
    _rule(f"[A-Za-z{SOFT_HYPHEN}]*[A-MO-Za-mo-z]{SOFT_HYPHEN}*", _word, context=_NOT),
    _rule(_WORD, _word, context=_ENDING),
    _rule(_WORD, _word),
    _rule(f"[yY]{_APOSTROPHE}", context=_LETTER),
    _rule(_APOSTROPHIZED),
    _rule(f"[A-HJ-XZn]{_APOSTROPHE_OR_TICK}{_LETTER}{{2,}}"),
    _rule(f"{_LETTER}+[aeiouyAEIOUY]{_APOSTROPHE_OR_TICK}[aeiouA-Z]{_LETTER}*"),
    _rule(_ENDING, _straight, context="[^A-Za-z]"),
    _rule(_NOT, _straight),
    # Addresses.
    _rule(_TAG, _in_one),
    _rule(_URL),
    _rule(f"{_SITE}(?:/{_IN_PATH}+{_LAST_IN_URL})?"),
    _rule(_MAIL),
    _rule("@[A-Za-z_][A-Za-z_0-9]*"),
    _rule(f"#{_START}+"),
    # Numbers, and compounds with hyphens and slashes.
    _rule(_DATE),
    _rule(f"[-+]?{_NUMBER}", _word),
    _rule(_FRACTION, _in_one),
    _rule(f"[{''.join(FRACTIONS)}]", _looked_up(FRACTIONS)),
    _rule(_JOINED, _word),
    _rule(_any_case("(?:anti|pro)-")),
    _rule(_CAPITALS, _word),
    _rule(rf"{_BESIDE_SLASH}(?:\\?/{_BESIDE_SLASH}){{1,2}}"),
    _rule(r"[cC]\+\+|[cCfF]#"),
    _rule(f"{_APOSTROPHE}[0-9]{{2}}", context=_GAP),
    # Abbreviations. An abbreviation that may end a sentence takes precedence over longer words only if two characters follow.
    _rule("[A-Za-z]", context=rf"\.{_GAP}+(?:{_SENTENCE_START}|{_TAG}){_GAP}+"),
    _rule(rf"{_INITIALS}|[A-Za-z]\."),
    _rule(rf"(?:{_TITLES}|[mM][ft][gG])\."),
    _rule(rf"(?:{_LAST_WORDS}|{_LAST_NAMES}|[pP]{{1,2}}t[ey]s?)\.", context=r"[\s\S]{2}"),
    _rule(rf"(?:{_LAST_WORDS}|{_LAST_NAMES}|[pP]{{1,2}}t[ey]s?)\."),
    _rule(_HYPHENATED, _word),
    *(_rule(rf"{word}\.", _word, context="[,;:\u3001]") for word in (_WORD, _JOINED, _HYPHENATED, _CAPITALS)),
    _rule(rf"{_BEFORE_NUMBER}\.", context=f"{_GAP}?{_DIGIT}"),
    _rule(f"{_PHONE}|{_PHONE_WITH_DOTS}", _round_in_one),
    _rule(rf"{_CONTINUED}+(?:\.{_CONTINUED}+)*\.{_FILE_ENDING}", context=f"(?:{_GAP}|[.!?,])"),
    # Symbols.
    _rule(r"[A-Z]*\$"),
    _rule(f"[{''.join(CURRENCIES)}]", _looked_up(CURRENCIES)),
    _rule(r"[<>]?[:;=][-o*']?[DOPdp()\\{@|\[\]]", _round_in_one, context="[^A-Za-z0-9]"),
    _rule(r"[-^x=~<>']_[-^x=~<>']"),
    _rule(r"\((?:[-^x=~<>'][_.]?[-^x=~<>']|[\^x=~<>']-[\^x=~<>'`])\)", _round_in_one),
    _rule("-{2,4}|[\x96\x97–—―]|&(?:mdash|MDASH|ndash|NDASH|MD);", _as("--")),
    _rule(r"-{5,}|_+|\*+|(?:\\\*)+|@+|#+|<<|>>|[!?]+"),
    _rule("[²³¹⁰⁴-⁹]+|[₀-₉]+"),
    _rule(r"\.{3,5}|\.(?:[ \xa0]\.){2,4}|…", _as("...")),
    _rule(_any_of(" ".join(ENTITIES)), _looked_up(ENTITIES)),
    _rule(r"[()\[\]{}]", _looked_up(BRACKETS)),
    _rule("\"|&quot;|''", _as("''")),
    _rule("&#[0-9]+;|&QUOT;|&APOS;"),
    _rule(_APOSTROPHE, _as("'")),
    _rule("'", context="[A-Za-z][^ \t\n\xa0]"),
    _rule(_ENDING, _straight),
    _rule("[`‘-‟‹›«»\x82\x84\x91-\x94]{1,2}", _each_looked_up(QUOTES)),
    _rule("&nbsp;|&NBSP;", _dropped),
    _rule(SOFT_HYPHEN, _as("-")),
    _rule(rf"[!-/:-@\[-`{{-~{_class_of(characters.SYMBOLS)}]"),
)
