"""The captions of a scene in six languages: the same things are said of it in each.

English says how much is said (``wording.py``); each other language is a module that words a list of objects and a sentence of
how they lie.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from demo.scenes import wording, wording_cs, wording_de, wording_fr, wording_ja, wording_zh
from demo.scenes.compose import Scene
from demo.scenes.describe import Looks, describe_scene, looks_of


class Language(NamedTuple):
    """``listing`` of objects in order; ``sentence`` of objects, the n-th of which stands in the n-th relation to the next, or
    in none (None)."""

    listing: Callable[[Sequence[Looks]], str]
    sentence: Callable[[Sequence[Looks], Sequence[str | None]], str]


TRANSLATIONS = {
    "de": Language(wording_de.listing, wording_de.sentence),
    "fr": Language(wording_fr.listing, wording_fr.sentence),
    "cs": Language(wording_cs.listing, wording_cs.sentence),
    "zh": Language(wording_zh.listing, wording_zh.sentence),
    "ja": Language(wording_ja.listing, wording_ja.sentence),
}

LANGUAGES = ("en", *TRANSLATIONS)


def captions_by_language(scene: Scene) -> dict[str, list[str]]:
    """Two captions in each language, as :func:`~demo.scenes.wording.captions` words them in English."""
    description = describe_scene(scene)
    found = {"en": wording.captions(scene, description)}
    of_list, of_sentence = wording.details(scene, description)
    listed = [looks_of(scene.objects[place], of_list) for place in description.listed]
    chain = [looks_of(scene.objects[place], of_sentence) for place in description.chain]
    for name, language in TRANSLATIONS.items():
        found[name] = [language.listing(listed), language.sentence(chain, description.links)]
    return found
