"""Decides what is stated of two images, and of which two images it is true.

Each statement comes with two images for which it is true and two for which it is false, so that the text alone tells nothing.
The false two are the true ones exchanged, or with one of them replaced by an image of as many objects: their number tells
nothing either, except where it is what the statement is about. An image that lacks what is stated has, every other time, an
object that fits but for one attribute, where the split has such an image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from demo.scenes.compose import STATEMENT_STREAM, one_of, stream
from demo.scenes.describe import Looks
from demo.scenes.vocabulary import COLOURS, OBJECT_COUNTS, PLAIN, SHAPES, SIDES, SIZES, TEXTURES

TURNS = ("both", "either", "side", "both", "either", "side", "one", "more")
"""The kinds of statements, in turn: mostly those for which it helps to find an object in one image. Of the others alone a
small model learns nothing in minutes, since nothing in one image makes them likelier."""

EXCHANGED = 0.25
"""How often the false images of a statement on a side are the true ones exchanged."""

TRIES = 12
"""Draws of a kind until another kind's turn comes."""

SEARCHED = 2000
"""The images of a statement are chosen among so many neighbours, so that the time a split takes grows with its length
alone and not with its square."""

ImageLooks = tuple[Looks, ...]
"""How the objects of an image look."""

TwoImages = tuple[int, int]
"""Places of the left and the right image in the split."""

Choice = tuple[TwoImages, TwoImages]
"""Images for which a statement is true, and for which it is false."""

_WORDS = (tuple(SIZES), tuple(texture for texture in TEXTURES if texture != PLAIN), tuple(COLOURS), SHAPES)
"""Words by the fields of :class:`Looks`; a word's code is its place, from 1."""

Codes = NDArray[np.int8]
"""(images, objects, fields of :class:`Looks`); 0 = plain, or no such object."""

Mask = NDArray[np.bool_]

_HAD = [names.split() for names in ("colour", "colour", "colour", "texture colour", "colour shape")]
"""Attributes that name an object that an image has: always its colour, which the pre-trained demo model finds by itself, where
it hardly tells shapes apart without."""

_COUNTED = [
    names.split() for names in ("", "colour", "size", "texture", "texture colour", "size colour", "size texture")
]
"""Attributes that name objects to count. Never by shape: one plural is enough."""


class StatementSet(NamedTuple):
    """A statement, its ``number`` in its split, and the (left, right) images for which it is true and for which it is false."""

    number: int
    text: str
    true: TwoImages
    false: TwoImages
    true_first: bool


def statement_sets(seed: int, split: str, images: Sequence[ImageLooks], count: int) -> Iterator[StatementSet]:
    """Up to ``count`` sets on the images of a split: a function of the arguments alone.

    In train a statement may come again with other images: there are few of some kinds. In val and test none does. Where
    the images allow no statement, or no new one, a set is left out and its number with it.
    """
    codes = _codes_of(images)
    seen: set[str] = set()
    for number in range(count):
        rng = stream(seed, split, number, STATEMENT_STREAM)
        drawn = _new_statement(codes, number, rng, seen)
        if drawn is not None:
            if split != "train":
                seen.add(drawn[0])
            yield StatementSet(number, *drawn, true_first=bool(rng.integers(2)))


def _new_statement(
    codes: Codes, number: int, rng: np.random.Generator, seen: set[str]
) -> tuple[str, TwoImages, TwoImages] | None:
    for turn in range(len(TURNS)):
        for _ in range(TRIES):
            try:
                drawn = _draw(TURNS[(number + turn) % len(TURNS)], codes, rng)
            except _NotFoundError:
                continue
            if drawn[0] not in seen:
                return drawn
    return None


def _draw(kind: str, codes: Codes, rng: np.random.Generator) -> tuple[str, TwoImages, TwoImages]:
    """A statement, and the images for which it is true and for which it is false.

    Raises:
        _NotFoundError: there are no such images for the drawn looks.
    """
    template, choose = _KINDS[kind]
    search = _Search(codes, rng, _COUNTED if kind == "more" else _HAD)
    side = one_of(rng, SIDES)
    opposite = SIDES[1] if side == SIDES[0] else SIDES[0]
    text = template.format(name=search.looks.name(), one=search.looks.indefinite(), side=side, opposite=opposite)
    places = [(search.start + first, search.start + second) for first, second in choose(search)]
    true, false = places if side == SIDES[0] else [two[::-1] for two in places]
    return text, true, false


def _codes_of(images: Sequence[ImageLooks]) -> Codes:
    """Looks of all objects of all images, so that they can be searched at once."""
    codes = np.zeros((len(images), max(OBJECT_COUNTS), len(_WORDS)), dtype=np.int8)
    for place, image in enumerate(images):
        for number, looks in enumerate(image):
            codes[place, number] = [
                0 if word is None else 1 + words.index(word) for words, word in zip(_WORDS, looks, strict=True)
            ]
    return codes


class _NotFoundError(Exception):
    """The searched images have none as it is wanted."""


class _Search:
    """Draws the looks of some object, and chooses images at random, among neighbours in the split.

    Attributes:
        start: place of the first neighbour; masks and chosen places count from it.
        totals: number of objects of each image.
        looks: looks of some object, as far as one of the sets of attributes names them.
        count: of each image the number of objects that look so.
        near: whether an object of the image looks so but for one attribute.
    """

    def __init__(self, codes: Codes, rng: np.random.Generator, sets: Sequence[Sequence[str]]) -> None:
        self.rng = rng
        self.start = int(rng.integers(max(1, len(codes) - SEARCHED + 1)))
        codes = codes[self.start : self.start + SEARCHED]
        present = codes.any(axis=2)
        self.totals = np.count_nonzero(present, axis=1)
        place = self.pick(self.totals > 0)
        drawn = codes[place, rng.integers(self.totals[place])]
        named = {
            name: words[code - 1] for name, words, code in zip(Looks._fields, _WORDS, drawn, strict=True) if code > 0
        }
        names = one_of(rng, [names for names in sets if named.keys() >= set(names)])
        self.looks = Looks(**{name: named[name] for name in names})
        columns = [Looks._fields.index(name) for name in names]
        met = np.where(present, np.count_nonzero(codes[..., columns] == drawn[columns], axis=2), -1)
        self.count = np.count_nonzero(met == len(columns), axis=1)
        self.near: Mask = (met == len(columns) - 1).any(axis=1)

    def chance(self) -> bool:
        """True every other time."""
        return bool(self.rng.integers(2))

    def like(self, place: int) -> Mask:
        """The images of as many objects as the one at ``place``, and not this one."""
        mask: Mask = self.totals == self.totals[place]
        return mask & self.other_than(place)

    def other_than(self, *places: int) -> Mask:
        """All images but these."""
        mask = np.ones(len(self.totals), dtype=np.bool_)
        mask[list(places)] = False
        return mask

    def pick(self, mask: Mask, preferred: Mask | None = None) -> int:
        """One image of the mask; every other time of the preferred ones, if there are any.

        Raises:
            _NotFoundError: the mask has none.
        """
        if preferred is not None and self.chance() and (mask & preferred).any():
            mask = mask & preferred
        places = np.flatnonzero(mask)
        if not len(places):
            raise _NotFoundError
        return int(places[self.rng.integers(len(places))])


# Each function chooses images for one kind of statement; of two images, the first is the one at the statement's side.


def _side(search: _Search) -> Choice:
    """The false two have another image at the statement's side; the image opposite has such an object too every other time, so
    that it tells little whether one is to be seen at all. Now and then the two are exchanged instead."""
    count, near = search.count, search.near
    has = search.pick(count > 0)
    lacks = search.pick((count == 0) & search.like(has), near)
    if search.rng.random() < EXCHANGED:
        return (has, lacks), (lacks, has)
    opposite = search.pick(((count > 0) == search.chance()) & search.other_than(has, lacks))
    return (has, opposite), (lacks, opposite)


def _both(search: _Search) -> Choice:
    """Of the false two, one lacks such an object."""
    count, near = search.count, search.near
    stays = search.pick(count > 0)
    has = search.pick((count > 0) & search.other_than(stays))
    lacks = search.pick((count == 0) & search.like(has), near)
    return (has, stays), (lacks, stays)


def _either(search: _Search) -> Choice:
    """Of the false two, neither has such an object; of the true ones, one has."""
    count, near = search.count, search.near
    has = search.pick(count > 0)
    lacks = search.pick((count == 0) & search.like(has), near)
    stays = search.pick((count == 0) & search.other_than(lacks), near)
    return (has, stays), (lacks, stays)


def _one(search: _Search) -> Choice:
    """Of the false two, both have such an object, or none has."""
    count, near = search.count, search.near
    has = search.pick(count > 0)
    lacks = search.pick(count == 0, near)
    if search.chance():
        return (has, lacks), (has, search.pick((count > 0) & search.like(lacks) & search.other_than(has)))
    return (has, lacks), (search.pick((count == 0) & search.like(has) & search.other_than(lacks), near), lacks)


def _more(search: _Search) -> Choice:
    """The false two are exchanged, or the one image has at least as many such objects, or the other at most as many.

    With "more shapes" the number of objects is what the statement is about; otherwise all images have as many objects.
    """
    count = search.count
    more = search.pick(count > 0, count > 1)
    alike = search.like(more) if any(search.looks) else search.other_than(more)
    fewer = search.pick((count < count[more]) & alike, count > 0)
    alike = alike & search.other_than(fewer)
    match int(search.rng.integers(3)):
        case 0:
            false = fewer, more
        case 1:
            false = more, search.pick((count >= count[more]) & alike)
        case _:
            false = search.pick((count <= count[fewer]) & alike), fewer
    return (more, fewer), false


_KINDS: dict[str, tuple[str, Callable[[_Search], Choice]]] = {
    "side": ("the {side} picture has {one}", _side),
    "both": ("both pictures have {one}", _both),
    "either": ("at least one picture has {one}", _either),
    "one": ("only one picture has {one}", _one),
    "more": ("the {side} picture has more {name}s than the {opposite} picture", _more),
}
