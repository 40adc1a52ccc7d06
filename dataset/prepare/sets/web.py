"""SBU and Conceptual Captions (CC3M, CC12M): captions with the addresses of their images."""

from __future__ import annotations

import codecs
import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

from dataset.prepare.counts import Counts
from dataset.prepare.json_pieces import json_pieces
from dataset.prepare.raw_folder import RawFile, RawFolder
from dataset.prepare.sets.base import DataSet
from utils.errors import UserError

SBU_URLS, SBU_CAPTIONS = "SBU_captioned_photo_dataset_urls.txt", "SBU_captioned_photo_dataset_captions.txt"
SBU_JSON = "sbu-captions-all.json"
CC3M_TSV, CC12M_TSV = "Train_GCC-training.tsv", "cc12m.tsv"

LONGEST_LINE = 1 << 20
"""Bytes of a line of a text file."""


class Pair(NamedTuple):
    """An address with its caption, as published, and the place of the two."""

    place: str
    url: str
    caption: str


def lines_of(file: RawFile, longest: int = LONGEST_LINE) -> Iterator[tuple[str, str]]:
    """The lines of a text file without their ends, each with its place.

    Args:
        file: the file.
        longest: bytes of a line; one with more speaks of another file.

    Raises:
        UserError: it is not in UTF-8, or a line has no end.
    """
    decode = codecs.getdecoder("utf-8")
    with file.open() as stream:
        for number in itertools.count(1):
            line = stream.readline(longest)
            if not line:
                return
            place = f"{file}:{number}"
            if len(line) == longest:
                raise UserError(f"{place}: a line of more than {longest:,} bytes; is it the official file?")
            try:
                yield place, decode(line)[0].removeprefix("\ufeff").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise UserError(f"{place}: it is not in UTF-8: {error.reason}; is it the official file?") from None


def sbu_sources(raw: RawFolder) -> list[RawFile]:
    """The two parallel text files, or the file of JSON."""
    if (file := raw.find(SBU_JSON)) is not None and raw.find(SBU_URLS) is None:
        return [file]
    return raw.need(SBU_URLS, SBU_CAPTIONS)


def sbu_pairs(sources: list[RawFile], counts: Counts) -> Iterator[Pair]:
    """The pairs of SBU.

    Raises:
        UserError: the two files do not have as many lines, or lists, of the same length.
    """
    urls, captions = _json_columns(sources[0]) if len(sources) == 1 else (lines_of(sources[0]), lines_of(sources[1]))
    end = ("", "")
    for count, (url, caption) in enumerate(itertools.zip_longest(urls, captions, fillvalue=end)):
        if url == end or caption == end:
            longer = sources[-1] if url == end else sources[0]
            raise UserError(f"{longer}: more than the {count:,} entries of the other side; is one of them cut off?")
        counts.read["pairs"] += 1
        yield Pair(url[0], url[1].strip(), caption[1])


def _json_columns(file: RawFile) -> tuple[Iterator[tuple[str, str]], Iterator[tuple[str, str]]]:
    columns: dict[str, list[tuple[str, str]]] = {"image_urls": [], "captions": []}
    with file.open() as stream:
        for piece in json_pieces(stream, str(file)):
            if piece.section in columns:
                place = f"{file}: {piece.section}[{piece.key}]"
                if not isinstance(piece.value, str):
                    raise UserError(f"{place} is no text; is it the official file?")
                columns[piece.section].append((place, piece.value))
    if not all(columns.values()):
        raise UserError(f"{file} has no lists image_urls and captions; is it the official file?")
    return iter(columns["image_urls"]), iter(columns["captions"])


def cc3m_sources(raw: RawFolder) -> list[RawFile]:
    """The file of training pairs."""
    return raw.need(CC3M_TSV)


def cc3m_pairs(sources: list[RawFile], counts: Counts) -> Iterator[Pair]:
    """The pairs of CC3M: the caption stands before the address, other than in CC12M."""
    return _pairs_of_lines(sources[0], ("caption", "url"), counts)


def _pairs_of_lines(file: RawFile, order: tuple[str, str], counts: Counts) -> Iterator[Pair]:
    """The pairs of a file with a caption and an address in each line, in the ``order`` of "caption" and "url"."""
    at = order.index("url")
    named = "not " + " and ".join("address" if name == "url" else name for name in order)
    for place, line in lines_of(file):
        columns = line.split("\t")
        if columns in ([""], list(order)):  # an empty line; img2dataset's guide has users put a line of names first
            continue
        counts.read["pairs"] += 1
        if len(columns) != 2:
            counts.leave_out("wrong columns", place, f"{len(columns)} columns, {named}")
        elif not columns[at].strip().lower().startswith(("http://", "https://")):
            which = ("first", "second")[at]
            counts.leave_out("wrong columns", place, f"the {which} column, {columns[at][:60]!r}, is no address")
        else:
            yield Pair(place, columns[at].strip(), columns[1 - at])


def cc12m_sources(raw: RawFolder) -> list[RawFile]:
    """The file of pairs."""
    return raw.need(CC12M_TSV)


def cc12m_pairs(sources: list[RawFile], counts: Counts) -> Iterator[Pair]:
    """The pairs of CC12M: the address stands before the caption, other than in CC3M. Names of people are ``<PERSON>``, which the
    clean-up makes "person"."""
    return _pairs_of_lines(sources[0], ("url", "caption"), counts)


class WebSet(NamedTuple):
    """A set of addresses: where its official files are, and how they are read."""

    sources: Callable[[RawFolder], list[RawFile]]
    pairs: Callable[[list[RawFile], Counts], Iterator[Pair]]


SBU = DataSet(
    title="SBU captions",
    home="www.cs.rice.edu/~vo9/sbucaptions",
    licence="none stated; images under the terms of Flickr",
    files={
        f"{SBU_URLS}, {SBU_CAPTIONS}": "addresses and captions, line by line (SBUCaptionedPhotoDataset.tar.gz, unpacked)",
        SBU_JSON: "the same, in one file",
    },
    sizes={"pairs": 1_000_000},
    products=(),
    required=(),
)

CC3M = DataSet(
    title="Conceptual Captions (CC3M)",
    home="ai.google.com/research/ConceptualCaptions",
    licence="free to use, as its home states; images under their own terms",
    files={CC3M_TSV: "captions and addresses"},
    sizes={"pairs": 3_318_333},
    products=(),
    required=(),
)

CC12M = DataSet(
    title="Conceptual 12M (CC12M)",
    home="github.com/google-research-datasets/conceptual-12m",
    licence="free to use, as its home states; images under their own terms",
    files={CC12M_TSV: "addresses and captions"},
    sizes={"pairs": 12_423_374},
    products=(),
    required=(),
)

WEB_SETS = {
    "sbu": WebSet(sbu_sources, sbu_pairs),
    "cc3m": WebSet(cc3m_sources, cc3m_pairs),
    "cc12m": WebSet(cc12m_sources, cc12m_pairs),
}
