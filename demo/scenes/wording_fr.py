"""French words for captions: articles and adjectives agree with gender; sizes stand before the noun, the rest after it."""

from __future__ import annotations

from collections.abc import Sequence

from demo.scenes.describe import Looks

NOUNS = {
    "circle": ("cercle", "m"),
    "square": ("carré", "m"),
    "triangle": ("triangle", "m"),
    "star": ("étoile", "f"),
    "cross": ("croix", "f"),
    "diamond": ("losange", "m"),
    "heart": ("cœur", "m"),
}
ADJECTIVES = {
    "small": ("petit", "petite"),
    "large": ("grand", "grande"),
    "striped": ("rayé", "rayée"),
    "dotted": ("à pois", "à pois"),
    "checked": ("à carreaux", "à carreaux"),
    "red": ("rouge", "rouge"),
    "orange": ("orange", "orange"),
    "yellow": ("jaune", "jaune"),
    "green": ("vert", "verte"),
    "cyan": ("turquoise", "turquoise"),
    "blue": ("bleu", "bleue"),
    "purple": ("violet", "violette"),
    "pink": ("rose", "rose"),
}
"""Masculine and feminine."""

RELATIONS = {"left of": "à gauche", "right of": "à droite", "above": "au-dessus", "below": "au-dessous"}
"""Each goes on with "d'un" or "d'une"."""


def noun_phrase(looks: Looks) -> str:
    """ "une petite étoile rouge à pois"."""
    assert looks.shape is not None
    noun, gender = NOUNS[looks.shape]
    form = 0 if gender == "m" else 1
    before = [ADJECTIVES[looks.size][form]] if looks.size is not None else []
    after = [ADJECTIVES[word][form] for word in (looks.colour, looks.texture) if word is not None]
    return " ".join([("un", "une")[form], *before, noun, *after])


def listing(listed: Sequence[Looks]) -> str:
    """ "une scène avec une étoile rouge et un cœur bleu"."""
    *others, last = [noun_phrase(looks) for looks in listed]
    return f"une scène avec {', '.join(others)} et {last}" if others else f"une scène avec {last}"


def sentence(chain: Sequence[Looks], links: Sequence[str | None]) -> str:
    """ "une étoile rouge à gauche d'un cœur bleu et un cercle vert"."""
    said = [noun_phrase(chain[0])]
    for link, looks in zip(links, chain[1:], strict=True):
        said.append(f"et {noun_phrase(looks)}" if link is None else f"{RELATIONS[link]} d'{noun_phrase(looks)}")
    return " ".join(said) if links else f"seulement {said[0]}"
