"""Other styles of drawing: the same scenes with other colours, textures and words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from demo.scenes.backgrounds import pick_background
from demo.scenes.compose import STYLE_PURPOSE, Scene
from demo.scenes.vocabulary import PLAIN, Colour


class Style(NamedTuple):
    """A style of drawing.

    Attributes:
        colours: the word and the tones that replace each colour of the vocabulary. A word begins with a vowel if the word that it
            replaces does, because the articles before it stay.
        textures: the word that replaces each texture of the vocabulary; also the name of its pattern.
    """

    colours: Mapping[str, tuple[str, Colour]]
    textures: Mapping[str, str]

    def words(self) -> dict[str, str]:
        """Returns the new words by the words that they replace."""
        return {name: word for name, (word, _) in self.colours.items()} | dict(self.textures)


STYLES = {
    "textile": Style(
        colours={
            "red": ("brown", Colour((126, 74, 40), (66, 34, 12))),
            "orange": ("olive", Colour((136, 132, 30), (76, 74, 6))),
            "yellow": ("cream", Colour((252, 240, 200), (188, 166, 108))),
            "green": ("mint", Colour((164, 240, 202), (58, 150, 108))),
            "cyan": ("teal", Colour((10, 112, 116), (122, 206, 204))),
            "blue": ("navy", Colour((22, 32, 92), (108, 122, 188))),
            "purple": ("lilac", Colour((202, 164, 236), (124, 82, 166))),
            "pink": ("maroon", Colour((118, 22, 52), (204, 110, 140))),
        },
        textures={"striped": "wavy", "dotted": "ringed", "checked": "gridded"},
    )
}


def in_style(scene: Scene, style: Style) -> Scene:
    """Returns the scene with the colours, the patterns and a background of a style. Its objects keep their names."""

    def tones(name: str) -> Colour:
        return style.colours[name][1]

    objects = tuple(
        replace(
            obj,
            rgb=tones(obj.colour).rgb,
            accent=tones(obj.colour).accent,
            form=obj.form._replace(texture=style.textures.get(obj.texture, PLAIN)),
        )
        for obj in scene.objects
    )
    background = pick_background(scene.rng(STYLE_PURPOSE), [obj.rgb for obj in objects])
    return replace(scene, objects=objects, background=background)


def in_words_of(style: Style, value: Any) -> Any:
    """Returns the JSON value of an English record in the words of a style."""
    words = style.words()
    pattern = re.compile(rf"\b({'|'.join(words)})\b")

    def reworded(value: Any) -> Any:
        if isinstance(value, str):
            return pattern.sub(lambda match: words[match[0]], value)
        if isinstance(value, dict):
            return {key: reworded(each) for key, each in value.items()}
        return [reworded(each) for each in value] if isinstance(value, list) else value

    return reworded(value)
