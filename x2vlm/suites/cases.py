"""What a suite of compositional benchmarks asks: which of these texts is about which of these images?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import UserError
from utils.files import read_json

Box = tuple[float, float, float, float]
"""x, y, width and height in pixels."""


@dataclass(frozen=True)
class Picture:
    """An image file, or the part of it in a box."""

    path: Path
    box: Box | None = None


@dataclass(frozen=True)
class Case:
    """One question of a suite.

    Attributes:
        kind: what the texts differ in; results are reported by kind.
        pictures: the images.
        texts: the texts; which are right for which image depends on the rule of the suite.
        part: cases of a kind are averaged over parts first, if their suite says so, for example over relations.
    """

    kind: str
    pictures: tuple[Picture, ...]
    texts: tuple[str, ...]
    part: str = ""


Rule = Callable[[np.ndarray], Mapping[str, float]]
"""Judges a case by its scores (images, texts): returns the value of each measure, usually 1 for right and 0 for wrong."""


@dataclass(frozen=True)
class Published:
    """Results of a model in the literature, in percent, by ``kind: measure`` or summary; ``source``: where they are printed."""

    model: str
    values: Mapping[str, float]
    source: str


@dataclass(frozen=True)
class Suite:
    """A set of cases with its official rule.

    Attributes:
        title: name of the suite.
        paper: authors, title and year, to cite.
        published_at: where its files are published.
        read: reads the cases from a folder.
        rule: the official rule.
        chance: value of each measure for random scores.
        over_parts: each kind is the mean over its parts instead of its cases.
        summaries: names of further rows, each with the kinds of which it is the mean: "micro" over all of their cases, or "macro"
            over kinds.
        published: results to compare with.
        note: what a reader of the results should know.
    """

    title: str
    paper: str
    published_at: str
    read: Callable[[Path], list[Case]]
    rule: Rule
    chance: Mapping[str, float]
    over_parts: bool = False
    summaries: Mapping[str, tuple[str, Sequence[str]]] | None = None
    published: tuple[Published, ...] = ()
    note: str = ""


def first_text_is_best(scores: np.ndarray) -> dict[str, float]:
    """The first text has a higher score than all others; a tie is wrong."""
    (row,) = scores
    return {"accuracy": float(row[0] > row[1:].max())}


def pairs_match(scores: np.ndarray) -> dict[str, float]:
    """Winoground's rule for two images and their texts (Thrush et al., 2022, equations 1 to 3); a tie is wrong.

    text: each image has a higher score with its own text; image: each text has a higher score with its own image; group: both.
    """
    own = np.diag(scores)
    text, image = bool((own > np.diag(scores[:, ::-1])).all()), bool((own > np.diag(scores[::-1])).all())
    return {"text": float(text), "image": float(image), "group": float(text and image)}


def choices_and_pairs_match(scores: np.ndarray) -> dict[str, float]:
    """As :func:`pairs_match`, after the share of the images that have a higher score with their own text."""
    return {"accuracy": float((np.diag(scores) > np.diag(scores[:, ::-1])).mean()), **pairs_match(scores)}


def need(folder: Path, names: Sequence[str], suite: str, published_at: str) -> list[Path]:
    """Returns the paths of the files of a suite that are in the folder.

    Raises:
        UserError: if a file is missing; the message says where it is published.
    """
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise UserError(
            f"{folder}: {', '.join(missing)} of {suite} {'is' if len(missing) == 1 else 'are'} missing; see {published_at}"
        )
    return [folder / name for name in names]


def entries_of(path: Path) -> list[tuple[str, Any]]:
    """Returns the entries of a JSON list or object, each with its place for messages.

    Raises:
        UserError: if the file cannot be read, or has another form.
    """
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: is not a JSON file that can be read ({error}); download it again") from None
    if isinstance(content, dict):
        return [(f"{path}: entry {key!r}", value) for key, value in content.items()]
    if isinstance(content, list):
        return [(f"{path}: entry {index}", value) for index, value in enumerate(content)]
    raise UserError(f"{path}: is neither a list nor an object; download it again")


@contextmanager
def reading(place: str) -> Iterator[None]:
    """A context in which errors of an entry with another form become a :class:`UserError` that names its place."""
    try:
        yield
    except KeyError as error:
        raise UserError(f"{place} has no {error}; is it the official file?") from None
    except (TypeError, ValueError, IndexError, AttributeError) as error:
        raise UserError(f"{place} has another form ({error}); is it the official file?") from None


def texts_in(entry: Any, *keys: str) -> tuple[str, ...]:
    """Returns the texts under these keys of an entry; raises KeyError or TypeError, see :func:`reading`."""
    texts = tuple(entry[key] for key in keys)
    if not all(isinstance(text, str) for text in texts):
        raise TypeError(f"{' and '.join(keys)} must be texts")
    return texts
