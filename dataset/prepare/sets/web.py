"""SBU and Conceptual Captions (CC3M, CC12M): captions with the URLs of their images."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from typing import Literal

from dataset.prepare.counts import Counts
from dataset.prepare.declarations import DataSet, Files, Pair, Urls, files_named
from dataset.prepare.img2dataset import is_url
from dataset.prepare.json_pieces import official_pieces
from dataset.prepare.raw_folder import RawFile, RawFolder
from utils.errors import UserError

SBU_URLS, SBU_CAPTIONS = "SBU_captioned_photo_dataset_urls.txt", "SBU_captioned_photo_dataset_captions.txt"
SBU_JSON = "sbu-captions-all.json"
CC3M_TSV, CC12M_TSV = "Train_GCC-training.tsv", "cc12m.tsv"

Order = tuple[Literal["caption", "url"], Literal["caption", "url"]]


def _sbu_files(raw: RawFolder) -> Files:
    """Finds the two parallel text files, or the JSON file with both lists."""
    if raw.find(SBU_JSON) is not None and raw.find(SBU_URLS) is None:
        return files_named(both=SBU_JSON)(raw)
    return files_named(urls=SBU_URLS, captions=SBU_CAPTIONS)(raw)


def _sbu_pairs(files: Files, counts: Counts) -> Iterator[Pair]:
    """Yields the pairs of SBU.

    Raises:
        UserError: the files, or the lists, have different lengths.
    """
    if "both" in files:
        urls, captions = _json_columns(files["both"])
    else:
        urls, captions = files["urls"].lines(), files["captions"].lines()
    end = ("", "")
    for count, (url, caption) in enumerate(itertools.zip_longest(urls, captions, fillvalue=end)):
        if url == end or caption == end:
            longer = [*files.values()][-1 if url == end else 0]
            raise UserError(
                f"more entries than the other side, which has {count:,}",
                where=longer,
                remedy="is one of them truncated?",
            )
        counts.read["pairs"] += 1
        if is_url(url[1].strip()):
            yield Pair(url[0], url[1].strip(), caption[1])
        else:
            counts.skip("wrong columns", url[0], f"{url[1][:60]!r} is not a URL")


def _json_columns(file: RawFile) -> tuple[Iterator[tuple[str, str]], Iterator[tuple[str, str]]]:
    columns: dict[str, list[tuple[str, str]]] = {"image_urls": [], "captions": []}
    with official_pieces(file, "SBU", *columns) as pieces:
        for piece in pieces:
            if not isinstance(piece.value, str):
                raise UserError(f"{piece.location} is not a text", remedy="is it the official file?")
            columns[piece.section].append((piece.location, piece.value))
    if not all(columns.values()):
        raise UserError(f"{file} has no lists image_urls and captions", remedy="is it the official file?")
    return iter(columns["image_urls"]), iter(columns["captions"])


def _pairs_of_lines(order: Order, files: Files, counts: Counts) -> Iterator[Pair]:
    """Yields the pairs of a file with a caption and a URL in each line, in the given order. Names of people are
    ``<PERSON>`` in CC12M, which cleaning changes to "person"."""
    [file] = files.values()
    at = order.index("url")
    named = "not " + " and ".join("URL" if name == "url" else name for name in order)
    for location, line in file.lines():
        columns = line.split("\t")
        if columns in ([""], list(order)):  # an empty line; or the header that img2dataset's guide tells users to add
            continue
        counts.read["pairs"] += 1
        if len(columns) != 2:
            counts.skip("wrong columns", location, f"{len(columns)} columns, {named}")
        elif not is_url(columns[at].strip()):
            which = ("first", "second")[at]
            detail = f"the {which} column, {columns[at][:60]!r}, is not a URL"
            counts.skip("wrong columns", location, detail)
        else:
            yield Pair(location, columns[at].strip(), columns[1 - at])


SBU = DataSet(
    name="sbu",
    title="SBU captions",
    home="www.cs.rice.edu/~vo9/sbucaptions",
    licence="none stated; images under the terms of Flickr",
    files={
        f"{SBU_URLS}, {SBU_CAPTIONS}": "URLs and captions, line by line (SBUCaptionedPhotoDataset.tar.gz, unpacked)",
        SBU_JSON: "the same, in one file",
    },
    sizes={"pairs": 1_000_000},
    makes=Urls(files=_sbu_files, read=_sbu_pairs),
    group="4m",
    paper="0.86M pairs",
)

CC3M = DataSet(
    name="cc3m",
    title="Conceptual Captions (CC3M)",
    home="ai.google.com/research/ConceptualCaptions",
    licence="free to use, according to its website; images under their own terms",
    files={CC3M_TSV: "captions and URLs"},
    sizes={"pairs": 3_318_333},
    makes=Urls(files=files_named(pairs=CC3M_TSV), read=partial(_pairs_of_lines, ("caption", "url"))),
    group="4m",
    paper="2.9M pairs",
)

CC12M = DataSet(
    name="cc12m",
    title="Conceptual 12M (CC12M)",
    home="github.com/google-research-datasets/conceptual-12m",
    licence="free to use, according to its website; images under their own terms",
    files={CC12M_TSV: "URLs and captions"},
    sizes={"pairs": 12_423_374},
    makes=Urls(files=files_named(pairs=CC12M_TSV), read=partial(_pairs_of_lines, ("url", "caption"))),
    group="1b",
    paper="11.1M pairs",
)
