"""Generates statements about two images, and chooses images for which they are true or false.

Each statement has two images for which it is true and two images for which it is false, so that the text alone is not
informative. The false pair is the true pair in reverse order, or the true pair with one image replaced by an image with the same
number of objects. The number of objects is therefore not informative either, unless the statement is about it. In half of the
cases, an image that does not fit the statement contains an object that fits except for one attribute, if the split has such an
image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from demo.scenes.compose import STATEMENT_PURPOSE, generator_for, one_of
from demo.scenes.describe import Looks
from demo.scenes.vocabulary import COLOURS, OBJECT_COUNTS, PLAIN, SHAPES, SIDES, SIZES, TEXTURES

KIND_CYCLE = ("both", "either", "side", "both", "either", "side", "one", "more")
"""The kinds of statements, in the order in which they alternate. For most kinds, finding an object in one image is helpful. A
small model cannot learn the other kinds alone within minutes, because no single image makes such a statement more likely."""

REVERSED_FRACTION = 0.25
"""Fraction of statements about a side for which the false pair is the true pair in reverse order."""

TRIES = 12
"""Number of attempts for a kind of statement before the next kind is tried."""

N_SEARCHED = 2000
"""Number of neighbouring images from which the images of a statement are chosen. Because of this limit, the time for a split is
linear in its length rather than quadratic."""

ImageLooks = tuple[Looks, ...]
"""The looks of the objects of an image."""

TwoImages = tuple[int, int]
"""Indices of the left and the right image in the split."""

Choice = tuple[TwoImages, TwoImages]
"""Images for which a statement is true, and for which it is false."""

_WORDS = (tuple(SIZES), tuple(texture for texture in TEXTURES if texture != PLAIN), tuple(COLOURS), SHAPES)
"""Words for each field of :class:`Looks`. The code of a word is its index, counted from 1."""

Codes = NDArray[np.int8]
"""Array (images, objects, fields of :class:`Looks`) of word codes. 0 means plain, or that the object does not exist."""

Mask = NDArray[np.bool_]

_PRESENT = [names.split() for names in ("colour", "colour", "colour", "texture colour", "colour shape")]
"""Sets of attributes that name an object of an image. They always include the colour, because the pre-trained demo model
recognises colours well, but hardly recognises shapes without colours."""

_COUNTED = [
    names.split() for names in ("", "colour", "size", "texture", "texture colour", "size colour", "size texture")
]
"""Sets of attributes that name objects to count. They never include the shape, so that only one plural is needed."""


class StatementSet(NamedTuple):
    """A statement, its index in the split (``number``), and the (left, right) images for which it is true and for which it is
    false."""

    number: int
    text: str
    true: TwoImages
    false: TwoImages
    true_first: bool


def statement_sets(seed: int, split: str, images: Sequence[ImageLooks], count: int) -> Iterator[StatementSet]:
    """Yields up to ``count`` sets of statements about the images of a split. They depend only on the arguments.

    In train, a statement may be repeated with other images, because some kinds have few statements. In val and test, statements
    are unique. If the images allow no statement, or no new statement, the set and its number are skipped.
    """
    codes = _codes_of(images)
    seen: set[str] = set()
    for number in range(count):
        rng = generator_for(seed, split, number, STATEMENT_PURPOSE)
        drawn = _new_statement(codes, number, rng, seen)
        if drawn is not None:
            if split != "train":
                seen.add(drawn[0])
            yield StatementSet(number, *drawn, true_first=bool(rng.integers(2)))


def _new_statement(
    codes: Codes, number: int, rng: np.random.Generator, seen: set[str]
) -> tuple[str, TwoImages, TwoImages] | None:
    for turn in range(len(KIND_CYCLE)):
        for _ in range(TRIES):
            try:
                drawn = _draw(KIND_CYCLE[(number + turn) % len(KIND_CYCLE)], codes, rng)
            except _NotFoundError:
                continue
            if drawn[0] not in seen:
                return drawn
    return None


def _draw(kind: str, codes: Codes, rng: np.random.Generator) -> tuple[str, TwoImages, TwoImages]:
    """Draws a statement, and the images for which it is true and for which it is false.

    Raises:
        _NotFoundError: if there are no such images for the drawn looks.
    """
    template, choose = _KINDS[kind]
    search = _Search(codes, rng, _COUNTED if kind == "more" else _PRESENT)
    side = one_of(rng, SIDES)
    opposite = SIDES[1] if side == SIDES[0] else SIDES[0]
    text = template.format(name=search.looks.name(), one=search.looks.indefinite(), side=side, opposite=opposite)
    pairs = [(search.start + first, search.start + second) for first, second in choose(search)]
    true, false = pairs if side == SIDES[0] else [two[::-1] for two in pairs]
    return text, true, false


def _codes_of(images: Sequence[ImageLooks]) -> Codes:
    """Encodes the looks of all objects of all images, so that they can be searched with array operations."""
    codes = np.zeros((len(images), max(OBJECT_COUNTS), len(_WORDS)), dtype=np.int8)
    for index, image in enumerate(images):
        for number, looks in enumerate(image):
            codes[index, number] = [
                0 if word is None else 1 + words.index(word) for words, word in zip(_WORDS, looks, strict=True)
            ]
    return codes


class _NotFoundError(Exception):
    """None of the searched images fits."""


class _Search:
    """Draws the looks of a random object, and chooses random images among neighbours in the split.

    Attributes:
        start: index of the first neighbour; masks and chosen indices are relative to it.
        totals: number of objects of each image.
        looks: looks of a random object, limited to one of the sets of attributes.
        count: number of objects with these looks in each image.
        near: mask of the images with an object that has these looks except for one attribute.
    """

    def __init__(self, codes: Codes, rng: np.random.Generator, sets: Sequence[Sequence[str]]) -> None:
        self.rng = rng
        self.start = int(rng.integers(max(1, len(codes) - N_SEARCHED + 1)))
        codes = codes[self.start : self.start + N_SEARCHED]
        present = codes.any(axis=2)
        self.totals = np.count_nonzero(present, axis=1)
        index = self.pick(self.totals > 0)
        drawn = codes[index, rng.integers(self.totals[index])]
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
        """Returns True with probability 1/2."""
        return bool(self.rng.integers(2))

    def like(self, index: int) -> Mask:
        """Returns a mask of the other images with the same number of objects as the image at ``index``."""
        mask: Mask = self.totals == self.totals[index]
        return mask & self.other_than(index)

    def other_than(self, *indices: int) -> Mask:
        """Returns a mask of all images except the images at ``indices``."""
        mask = np.ones(len(self.totals), dtype=np.bool_)
        mask[list(indices)] = False
        return mask

    def pick(self, mask: Mask, preferred: Mask | None = None) -> int:
        """Returns a random image of the mask. With probability 1/2, it is one of the preferred images, if there are any.

        Raises:
            _NotFoundError: if the mask is empty.
        """
        if preferred is not None and self.chance() and (mask & preferred).any():
            mask = mask & preferred
        indices = np.flatnonzero(mask)
        if not len(indices):
            raise _NotFoundError
        return int(indices[self.rng.integers(len(indices))])


# Each function chooses images for one kind of statement. The first image of a pair is on the side that the statement names. A
# matching object has the looks of the search.


def _side(search: _Search) -> Choice:
    """The false pair has another image on the side of the statement. In half of the cases, the opposite image also has a matching
    object, so that the presence of one is hardly informative. Sometimes, the false pair is the true pair in reverse order
    instead."""
    count, near = search.count, search.near
    has = search.pick(count > 0)
    lacks = search.pick((count == 0) & search.like(has), near)
    if search.rng.random() < REVERSED_FRACTION:
        return (has, lacks), (lacks, has)
    opposite = search.pick(((count > 0) == search.chance()) & search.other_than(has, lacks))
    return (has, opposite), (lacks, opposite)


def _both(search: _Search) -> Choice:
    """In the false pair, one image has no matching object."""
    count, near = search.count, search.near
    stays = search.pick(count > 0)
    has = search.pick((count > 0) & search.other_than(stays))
    lacks = search.pick((count == 0) & search.like(has), near)
    return (has, stays), (lacks, stays)


def _either(search: _Search) -> Choice:
    """In the false pair, neither image has a matching object; in the true pair, one has."""
    count, near = search.count, search.near
    has = search.pick(count > 0)
    lacks = search.pick((count == 0) & search.like(has), near)
    stays = search.pick((count == 0) & search.other_than(lacks), near)
    return (has, stays), (lacks, stays)


def _one(search: _Search) -> Choice:
    """In the false pair, both images have a matching object, or neither has."""
    count, near = search.count, search.near
    has = search.pick(count > 0)
    lacks = search.pick(count == 0, near)
    if search.chance():
        return (has, lacks), (has, search.pick((count > 0) & search.like(lacks) & search.other_than(has)))
    return (has, lacks), (search.pick((count == 0) & search.like(has) & search.other_than(lacks), near), lacks)


def _more(search: _Search) -> Choice:
    """The false pair is the true pair in reverse order, or one image is replaced so that the first image does not have more
    matching objects than the second.

    With "more shapes", the statement is about the number of objects. Otherwise, all images have the same number of objects.
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
