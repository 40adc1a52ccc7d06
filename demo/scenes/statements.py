"""Decides what is stated of two images, and of which two images it is true; ``wording.py`` puts it into words.

Each statement comes with two images for which it is true and two for which it is false, so that the text alone tells nothing.
The false two are the true ones exchanged, or with one of them replaced by an image of as many objects: their number tells
nothing either, except where it is what the statement is about. An image that lacks what is stated has, every other time, an
object that fits but for one attribute, where the split has such an image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from demo.scenes.compose import STATEMENT_STREAM, one_of, stream
from demo.scenes.describe import Looks
from demo.scenes.vocabulary import COLOURS, OBJECT_COUNTS, PLAIN, SHAPES, SIDES, SIZES, TEXTURES

Kind = Literal["side", "both", "either", "one", "more"]

KINDS: tuple[Kind, ...] = ("both", "either", "side", "both", "either", "side", "one", "more")
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
"""Places in the split, or, within a search, in its neighbourhood."""

Mask = NDArray[np.bool_]

_HAD = [names.split() for names in ("colour", "colour", "colour", "texture colour", "colour shape")]
"""Attributes that name an object that an image has: always its colour, which the pre-trained demo model finds by itself, where
it hardly tells shapes apart without."""

_COUNTED = [
    names.split() for names in ("", "colour", "size", "texture", "texture colour", "size colour", "size texture")
]
"""Attributes that name objects to count. Never by shape: one plural is enough."""


class Statement(NamedTuple):
    """A statement on two images.

    "side": the image at ``side`` has an object of such ``looks``. "both": each image has one. "either": at least one of them
    has. "one": one has one and the other none. "more": the image at ``side`` has more of them than the other.
    """

    kind: Kind
    looks: Looks
    side: str | None = None


class StatementSet(NamedTuple):
    """A statement, its ``number`` in its split, and the (left, right) images for which it is true and for which it is false."""

    number: int
    statement: Statement
    true: TwoImages
    false: TwoImages
    true_first: bool


def statement_sets(seed: int, split: str, images: Sequence[ImageLooks], count: int) -> Iterator[StatementSet]:
    """Up to ``count`` sets on the images of a split: a function of the arguments alone.

    In train a statement may come again with other images: there are few of some kinds. In val and test none does. Where
    the images allow no statement, or no new one, a set is left out and its number with it.
    """
    table = _Table(images)
    seen: set[Statement] = set()
    for number in range(count):
        rng = stream(seed, split, number, STATEMENT_STREAM)
        drawn = _new_statement(table, number, rng, seen)
        if drawn is not None:
            if split != "train":
                seen.add(drawn[0])
            yield StatementSet(number, *drawn, true_first=bool(rng.integers(2)))


def _new_statement(
    table: _Table, number: int, rng: np.random.Generator, seen: set[Statement]
) -> tuple[Statement, TwoImages, TwoImages] | None:
    for turn in range(len(KINDS)):
        for _ in range(TRIES):
            try:
                drawn = _draw(KINDS[(number + turn) % len(KINDS)], _Search(table, rng))
            except _NotFoundError:
                continue
            if drawn[0] not in seen:
                return drawn
    return None


def _draw(kind: Kind, search: _Search) -> tuple[Statement, TwoImages, TwoImages]:
    """A statement, and the images for which it is true and for which it is false."""
    looks = search.draw_looks(_COUNTED if kind == "more" else _HAD)
    side = one_of(search.rng, SIDES)
    true, false = (
        search.in_split(images if side == SIDES[0] else images[::-1]) for images in _CHOOSE[kind](search, looks)
    )
    return Statement(kind, looks, side if kind in ("side", "more") else None), true, false


_WORDS = (tuple(SIZES), tuple(texture for texture in TEXTURES if texture != PLAIN), tuple(COLOURS), SHAPES)
"""Words by the fields of :class:`Looks`; a word's code is its place, from 1."""


class _Table:
    """All images of a split in arrays, so that they can be searched at once.

    Attributes:
        looks: (images, objects, 4) int8, codes of the fields of :class:`Looks`; 0 = plain, or no such object.
        totals: (images,) int64, numbers of objects.
    """

    def __init__(self, images: Sequence[ImageLooks]) -> None:
        self.totals = np.array([len(image) for image in images], dtype=np.int64)
        self.looks = np.zeros((len(images), max(OBJECT_COUNTS), len(_WORDS)), dtype=np.int8)
        for place, image in enumerate(images):
            for index, looks in enumerate(image):
                self.looks[place, index] = [_code(words, word) for words, word in zip(_WORDS, looks, strict=True)]


def _code(words: tuple[str, ...], word: str | None) -> int:
    return 0 if word is None else 1 + words.index(word)


class _NotFoundError(Exception):
    """The searched images have none as it is wanted."""


class _Search:
    """Chooses images at random, among neighbours in the split; masks and chosen places count from the first of these."""

    def __init__(self, table: _Table, rng: np.random.Generator) -> None:
        self.rng = rng
        self.start = int(rng.integers(max(1, len(table.totals) - SEARCHED + 1)))
        self.looks = table.looks[self.start : self.start + SEARCHED]
        self.totals = table.totals[self.start : self.start + SEARCHED]

    def chance(self) -> bool:
        """True every other time."""
        return bool(self.rng.integers(2))

    def draw_looks(self, sets: Sequence[Sequence[str]]) -> Looks:
        """The looks of some object, as far as one of the sets of attributes names them."""
        objects = self.looks[self.pick(self.totals > 0)]
        codes = objects[self.rng.integers(np.count_nonzero(objects.any(axis=1)))]
        named = {
            name: words[code - 1] for name, words, code in zip(Looks._fields, _WORDS, codes, strict=True) if code > 0
        }
        names = one_of(self.rng, [names for names in sets if named.keys() >= set(names)])
        return Looks(**{name: named[name] for name in names})

    def find(self, looks: Looks) -> tuple[NDArray[np.int64], Mask]:
        """Of each image the number of objects that fit, and whether one fits but for one attribute."""
        columns = [column for column, word in enumerate(looks) if word is not None]
        wanted = [_code(_WORDS[column], looks[column]) for column in columns]
        met = np.count_nonzero(self.looks[..., columns] == wanted, axis=2)
        met[~self.looks.any(axis=2)] = -1
        return np.count_nonzero(met == len(columns), axis=1), (met == len(columns) - 1).any(axis=1)

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

    def in_split(self, images: TwoImages) -> TwoImages:
        """Places in the split of two images of the search."""
        return self.start + images[0], self.start + images[1]


# Each function chooses the images of a statement on `looks`, (at the statement's side, opposite): first the two for which it is
# true, then the two for which it is false.


def _side(search: _Search, looks: Looks) -> tuple[TwoImages, TwoImages]:
    """The false two have another image at the statement's side; the image opposite has such an object too every other time, so
    that it tells little whether one is to be seen at all. Now and then the two are exchanged instead."""
    count, near = search.find(looks)
    has = search.pick(count > 0)
    lacks = search.pick((count == 0) & search.like(has), near)
    if search.rng.random() < EXCHANGED:
        return (has, lacks), (lacks, has)
    opposite = search.pick(((count > 0) == search.chance()) & search.other_than(has, lacks))
    return (has, opposite), (lacks, opposite)


def _both(search: _Search, looks: Looks) -> tuple[TwoImages, TwoImages]:
    """Of the false two, one lacks such an object."""
    count, near = search.find(looks)
    stays = search.pick(count > 0)
    has = search.pick((count > 0) & search.other_than(stays))
    lacks = search.pick((count == 0) & search.like(has), near)
    return (has, stays), (lacks, stays)


def _either(search: _Search, looks: Looks) -> tuple[TwoImages, TwoImages]:
    """Of the false two, neither has such an object; of the true ones, one has."""
    count, near = search.find(looks)
    has = search.pick(count > 0)
    lacks = search.pick((count == 0) & search.like(has), near)
    stays = search.pick((count == 0) & search.other_than(lacks), near)
    return (has, stays), (lacks, stays)


def _one(search: _Search, looks: Looks) -> tuple[TwoImages, TwoImages]:
    """Of the false two, both have such an object, or none has."""
    count, near = search.find(looks)
    has = search.pick(count > 0)
    lacks = search.pick(count == 0, near)
    if search.chance():
        return (has, lacks), (has, search.pick((count > 0) & search.like(lacks) & search.other_than(has)))
    return (has, lacks), (search.pick((count == 0) & search.like(has) & search.other_than(lacks), near), lacks)


def _more(search: _Search, looks: Looks) -> tuple[TwoImages, TwoImages]:
    """The false two are exchanged, or the one image has at least as many such objects, or the other at most as many.

    With "more shapes" the number of objects is what the statement is about; otherwise all images have as many objects.
    """
    count, _ = search.find(looks)
    more = search.pick(count > 0, count > 1)
    alike = search.like(more) if any(looks) else search.other_than(more)
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


_CHOOSE: dict[Kind, Callable[[_Search, Looks], tuple[TwoImages, TwoImages]]] = {
    "side": _side,
    "both": _both,
    "either": _either,
    "one": _one,
    "more": _more,
}
