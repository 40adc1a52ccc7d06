"""German words for captions: articles and adjectives agree with gender and case."""

from __future__ import annotations

from collections.abc import Sequence

from demo.scenes.describe import Looks

NOUNS = {
    "circle": ("Kreis", "m"),
    "square": ("Quadrat", "n"),
    "triangle": ("Dreieck", "n"),
    "star": ("Stern", "m"),
    "cross": ("Kreuz", "n"),
    "diamond": ("Raute", "f"),
    "heart": ("Herz", "n"),
}
DATIVE = {"Herz": "Herzen"}
"""Of nouns that have an ending there."""

ADJECTIVES = {
    "small": "klein",
    "large": "groß",
    "striped": "gestreift",
    "dotted": "gepunktet",
    "checked": "kariert",
    "red": "rot",
    "orange": "orangefarben",
    "yellow": "gelb",
    "green": "grün",
    "cyan": "türkisfarben",
    "blue": "blau",
    "purple": "violett",
    "pink": "rosafarben",
}
RELATIONS = {"left of": "links von", "right of": "rechts von", "above": "über", "below": "unter"}
"""All of them take the dative here: they say where something is."""

ARTICLES = {
    "nominative": {"m": ("ein", "er"), "f": ("eine", "e"), "n": ("ein", "es")},
    "dative": {"m": ("einem", "en"), "f": ("einer", "en"), "n": ("einem", "en")},
}
"""The article, and the ending of adjectives after it."""


def noun_phrase(looks: Looks, case: str) -> str:
    """ "ein kleiner roter Stern", "einem kleinen roten Stern"."""
    assert looks.shape is not None
    noun, gender = NOUNS[looks.shape]
    article, ending = ARTICLES[case][gender]
    said = [ADJECTIVES[word] for word in (looks.size, looks.texture, looks.colour) if word is not None]
    return " ".join([article, *(word + ending for word in said), DATIVE.get(noun, noun) if case == "dative" else noun])


def listing(listed: Sequence[Looks]) -> str:
    """ "eine Szene mit einem roten Stern und einem blauen Herzen"."""
    *others, last = [noun_phrase(looks, "dative") for looks in listed]
    return f"eine Szene mit {', '.join(others)} und {last}" if others else f"eine Szene mit {last}"


def sentence(chain: Sequence[Looks], links: Sequence[str | None]) -> str:
    """ "ein roter Stern links von einem blauen Herzen und ein grüner Kreis"."""
    said = [noun_phrase(chain[0], "nominative")]
    for link, looks in zip(links, chain[1:], strict=True):
        said += (
            ["und", noun_phrase(looks, "nominative")]
            if link is None
            else [RELATIONS[link], noun_phrase(looks, "dative")]
        )
    return " ".join(said) if links else f"nur {said[0]}"
