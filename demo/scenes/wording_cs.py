"""Czech words for captions: no articles, nouns and adjectives in the case that preposition and gender ask for."""

from __future__ import annotations

from collections.abc import Sequence

from demo.scenes.describe import Looks

CASES = ("nominative", "genitive", "instrumental")

NOUNS = {
    "circle": ("m", ("kruh", "kruhu", "kruhem")),
    "square": ("m", ("čtverec", "čtverce", "čtvercem")),
    "triangle": ("m", ("trojúhelník", "trojúhelníku", "trojúhelníkem")),
    "star": ("f", ("hvězda", "hvězdy", "hvězdou")),
    "cross": ("m", ("kříž", "kříže", "křížem")),
    "diamond": ("m", ("kosočtverec", "kosočtverce", "kosočtvercem")),
    "heart": ("n", ("srdce", "srdce", "srdcem")),
}
"""Gender, and the forms of :data:`CASES`."""

ENDINGS = {"m": ("ý", "ého", "ým"), "f": ("á", "é", "ou"), "n": ("é", "ého", "ým")}
"""Of hard adjectives, which all of these are, in the order of :data:`CASES`."""

ADJECTIVES = {
    "small": "mal",
    "large": "velk",
    "striped": "pruhovan",
    "dotted": "puntíkovan",
    "checked": "kostkovan",
    "red": "červen",
    "orange": "oranžov",
    "yellow": "žlut",
    "green": "zelen",
    "cyan": "tyrkysov",
    "blue": "modr",
    "purple": "fialov",
    "pink": "růžov",
}
"""Stems."""

RELATIONS = {
    "left of": ("nalevo od", "genitive"),
    "right of": ("napravo od", "genitive"),
    "above": ("nad", "instrumental"),
    "below": ("pod", "instrumental"),
}

_VOCALISED = ("s", "z", "š", "ž", "čt")
"""Before these, "s" (with) becomes "se": "se srdcem", "se čtvercem", but "s červeným čtvercem"."""


def noun_phrase(looks: Looks, case: str) -> str:
    """ "malá červená hvězda", "malé červené hvězdy", "malou červenou hvězdou"."""
    assert looks.shape is not None
    gender, forms = NOUNS[looks.shape]
    place = CASES.index(case)
    said = [ADJECTIVES[word] for word in (looks.size, looks.texture, looks.colour) if word is not None]
    return " ".join([*(stem + ENDINGS[gender][place] for stem in said), forms[place]])


def listing(listed: Sequence[Looks]) -> str:
    """ "scéna s červenou hvězdou a modrým srdcem"."""
    *others, last = [noun_phrase(looks, "instrumental") for looks in listed]
    said = f"{', '.join(others)} a {last}" if others else last
    return f"scéna {'se' if said.startswith(_VOCALISED) else 's'} {said}"


def sentence(chain: Sequence[Looks], links: Sequence[str | None]) -> str:
    """ "červená hvězda nalevo od modrého srdce a zelený kruh"."""
    said = [noun_phrase(chain[0], "nominative")]
    for link, looks in zip(links, chain[1:], strict=True):
        preposition, case = ("a", "nominative") if link is None else RELATIONS[link]
        said += [preposition, noun_phrase(looks, case)]
    return " ".join(said) if links else f"jenom {said[0]}"
