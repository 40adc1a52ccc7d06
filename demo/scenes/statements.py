"""Decides what is stated of pairs of pictures, and of which pairs it is true; ``wording.py`` says it in words.

Each statement comes with two pairs, one for which it is true and one for which it is false, so that the text alone tells
nothing. The false pair is the true one with its pictures exchanged, or with one of them replaced by a picture of as many
objects: their number tells nothing either, except where it is what the statement is about. A picture that lacks what is
stated has, every other time, an object that fits but for one attribute, where the split has such a picture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from demo.scenes.compose import STATEMENT_STREAM, stream
from demo.scenes.describe import Looks
from demo.scenes.vocabulary import COLOURS, OBJECT_COUNTS, PLAIN, SHAPES, SIDES, SIZES, TEXTURES

Kind = Literal["side", "both", "either", "one", "more"]

KINDS: tuple[Kind, ...] = ("both", "either", "side", "both", "either", "side", "one", "more")
"""The kinds of statements, in turn: mostly those for which it helps to find the thing in one picture. Of the others alone a
small model learns nothing in minutes, since nothing in one picture makes them likelier."""

EXCHANGED = 0.25
"""How often the false pair of a statement on a side is the true one exchanged."""

TRIES = 12
"""Draws of a kind until another kind's turn comes."""

SEARCHED = 2000
"""The pictures of a statement are chosen among so many neighbours, so that the time a split takes grows with its length
alone and not with its square."""

Picture = tuple[Looks, ...]
"""How the objects of a picture look."""

Pair = tuple[int, int]
"""The left and the right picture, by their places in the split."""

Mask = NDArray[np.bool_]


class Statement(NamedTuple):
    """What is stated of two pictures.

    "side": the picture at ``side`` has a thing of such ``looks``. "both": each has one. "either": at least one of them has.
    "one": one has one and the other none.
    "more": the picture at ``side`` has more of them than the other.
    """

    kind: Kind
    looks: Looks
    side: str | None = None


class Judgement(NamedTuple):
    """A statement with a pair of pictures for which it is true and one for which it is false."""

    statement: Statement
    true: Pair
    false: Pair


@dataclass(frozen=True)
class StatementSet:
    """A judgement, its ``number`` in its split, and in which order its two pairs come."""

    number: int
    judgement: Judgement
    true_first: bool


def statement_sets(seed: int, split: str, pictures: Sequence[Picture], count: int) -> Iterator[StatementSet]:
    """Up to ``count`` sets on the pictures of a split: a function of the arguments alone.

    In train a statement may come again with other pictures: there are few of some kinds. In val and test none does. Where
    the pictures allow no statement, or no new one, a set is left out and its number with it.
    """
    table = _Table(pictures)
    seen: set[Statement] = set()
    for number in range(count):
        rng = stream(seed, split, number, STATEMENT_STREAM)
        judgement = _judgement(table, number, rng, seen)
        if judgement is not None:
            if split != "train":
                seen.add(judgement.statement)
            yield StatementSet(number, judgement, true_first=bool(rng.integers(2)))


def _judgement(table: _Table, number: int, rng: np.random.Generator, seen: set[Statement]) -> Judgement | None:
    for turn in range(len(KINDS)):
        draw = _DRAW[KINDS[(number + turn) % len(KINDS)]]
        for _ in range(TRIES):
            try:
                judgement = draw(_Search(table, rng))
            except _NotFoundError:
                continue
            if judgement.statement not in seen:
                return judgement
    return None


_WORDS = (tuple(SIZES), tuple(texture for texture in TEXTURES if texture != PLAIN), tuple(COLOURS), SHAPES)
"""Words by the fields of :class:`Looks`; a word's code is its place, from 1."""


class _Table:
    """All pictures of a split in arrays, so that they can be searched at once.

    ``looks``: (pictures, objects, 4) int8, codes of the fields of :class:`Looks`; 0 = plain, or no such object.
    ``totals``: (pictures,) int64, numbers of objects.
    """

    def __init__(self, pictures: Sequence[Picture]) -> None:
        self.totals = np.array([len(picture) for picture in pictures], dtype=np.int64)
        self.looks = np.zeros((len(pictures), max(OBJECT_COUNTS), len(_WORDS)), dtype=np.int8)
        for place, picture in enumerate(pictures):
            for index, thing in enumerate(picture):
                self.looks[place, index] = [_code(words, said) for words, said in zip(_WORDS, thing, strict=True)]


def _code(words: tuple[str, ...], said: str | None) -> int:
    return 0 if said is None else 1 + words.index(said)


class _NotFoundError(Exception):
    """There is no picture as it is wanted."""


class _Search:
    """Chooses pictures at random, among neighbours in the split; masks and chosen places count from the first of these."""

    def __init__(self, table: _Table, rng: np.random.Generator) -> None:
        self.rng = rng
        self.start = int(rng.integers(max(1, len(table.totals) - SEARCHED + 1)))
        self.looks = table.looks[self.start : self.start + SEARCHED]
        self.totals = table.totals[self.start : self.start + SEARCHED]

    def chance(self) -> bool:
        """True every other time."""
        return bool(self.rng.integers(2))

    def side(self) -> str:
        """The left or the right picture."""
        return SIDES[self.rng.integers(len(SIDES))]

    def draw_looks(self, sets: Sequence[tuple[str, ...]]) -> Looks:
        """The looks of some object, as far as one of the sets of attributes names them."""
        codes = self.looks[self.pick(self.totals > 0)]
        thing = codes[self.rng.integers(np.count_nonzero(codes.any(axis=1)))]
        said = {
            name: words[code - 1] for name, words, code in zip(Looks._fields, _WORDS, thing, strict=True) if code > 0
        }
        possible = [names for names in sets if said.keys() >= set(names)]
        return Looks(**{name: said[name] for name in possible[self.rng.integers(len(possible))]})

    def find(self, looks: Looks) -> tuple[NDArray[np.int64], Mask]:
        """Of each picture the number of objects that fit, and whether one fits but for one attribute."""
        columns = [column for column, said in enumerate(looks) if said is not None]
        wanted = [_code(_WORDS[column], looks[column]) for column in columns]
        met = np.count_nonzero(self.looks[..., columns] == wanted, axis=2)
        met[~self.looks.any(axis=2)] = -1
        return np.count_nonzero(met == len(columns), axis=1), (met == len(columns) - 1).any(axis=1)

    def like(self, place: int) -> Mask:
        """The pictures of as many objects as the one at ``place``, and not this one."""
        mask: Mask = self.totals == self.totals[place]
        return mask & self.other_than(place)

    def other_than(self, *places: int) -> Mask:
        """All pictures but these."""
        mask = np.ones(len(self.totals), dtype=np.bool_)
        mask[list(places)] = False
        return mask

    def pick(self, mask: Mask, preferred: Mask | None = None) -> int:
        """One picture of the mask; every other time of the preferred ones, if there are any.

        Raises:
            _NotFoundError: the mask has none.
        """
        if preferred is not None and self.chance() and (mask & preferred).any():
            mask = mask & preferred
        places = np.flatnonzero(mask)
        if not len(places):
            raise _NotFoundError
        return int(places[self.rng.integers(len(places))])

    def pair(self, side: str, there: int, opposite: int) -> Pair:
        """The pair that has picture ``there`` at ``side``, in places of the split."""
        there, opposite = self.start + there, self.start + opposite
        return (there, opposite) if side == SIDES[0] else (opposite, there)


_HAD = tuple(tuple(names.split()) for names in ("colour", "colour", "colour", "texture colour", "colour shape"))
"""By which attributes a thing is named that a picture has: always by its colour, which the pre-trained demo model finds by
itself, where it hardly tells shapes apart without."""

_COUNTED = tuple(
    tuple(names.split()) for names in ("", "colour", "size", "texture", "texture colour", "size colour", "size texture")
)
"""By which attributes things are named that are counted. Never by shape: one plural is enough."""


def _side(search: _Search) -> Judgement:
    """The false pair has another picture at the side that the statement is about; the picture opposite has such a thing too
    every other time, so that it tells little whether one is to be seen at all. Now and then it is exchanged instead."""
    looks, side = search.draw_looks(_HAD), search.side()
    statement = Statement("side", looks, side)
    count, near = search.find(looks)
    has = search.pick(count > 0)
    lacks = search.pick((count == 0) & search.like(has), near)
    if search.rng.random() < EXCHANGED:
        return Judgement(statement, search.pair(side, has, lacks), search.pair(side, lacks, has))
    opposite = search.pick(((count > 0) == search.chance()) & search.other_than(has, lacks))
    return Judgement(statement, search.pair(side, has, opposite), search.pair(side, lacks, opposite))


def _both(search: _Search) -> Judgement:
    """In the false pair one picture lacks such a thing."""
    looks, side = search.draw_looks(_HAD), search.side()
    count, near = search.find(looks)
    stays = search.pick(count > 0)
    has = search.pick((count > 0) & search.other_than(stays))
    lacks = search.pick((count == 0) & search.like(has), near)
    return Judgement(Statement("both", looks), search.pair(side, has, stays), search.pair(side, lacks, stays))


def _either(search: _Search) -> Judgement:
    """In the false pair neither picture has such a thing; in the true one, one has."""
    looks, side = search.draw_looks(_HAD), search.side()
    count, near = search.find(looks)
    has = search.pick(count > 0)
    lacks = search.pick((count == 0) & search.like(has), near)
    stays = search.pick((count == 0) & search.other_than(lacks), near)
    return Judgement(Statement("either", looks), search.pair(side, has, stays), search.pair(side, lacks, stays))


def _one(search: _Search) -> Judgement:
    """In the false pair both pictures have such a thing, or none has."""
    looks, side = search.draw_looks(_HAD), search.side()
    count, near = search.find(looks)
    has = search.pick(count > 0)
    lacks = search.pick(count == 0, near)
    if search.chance():
        false = search.pair(side, has, search.pick((count > 0) & search.like(lacks) & search.other_than(has)))
    else:
        false = search.pair(side, search.pick((count == 0) & search.like(has) & search.other_than(lacks), near), lacks)
    return Judgement(Statement("one", looks), search.pair(side, has, lacks), false)


def _more(search: _Search) -> Judgement:
    """The false pair is exchanged, or the one picture has at least as many such things, or the other at most as many.

    With "more shapes" the number of objects is what the statement is about; otherwise all pictures have as many objects.
    """
    looks, side = search.draw_looks(_COUNTED), search.side()
    count, _ = search.find(looks)
    more = search.pick(count > 0, count > 1)
    alike = search.like(more) if any(looks) else search.other_than(more)
    fewer = search.pick((count < count[more]) & alike, count > 0)
    alike = alike & search.other_than(fewer)
    match int(search.rng.integers(3)):
        case 0:
            false = search.pair(side, fewer, more)
        case 1:
            false = search.pair(side, more, search.pick((count >= count[more]) & alike))
        case _:
            false = search.pair(side, search.pick((count <= count[fewer]) & alike), fewer)
    return Judgement(Statement("more", looks, side), search.pair(side, more, fewer), false)


_DRAW: dict[Kind, Callable[[_Search], Judgement]] = {
    "side": _side,
    "both": _both,
    "either": _either,
    "one": _one,
    "more": _more,
}
