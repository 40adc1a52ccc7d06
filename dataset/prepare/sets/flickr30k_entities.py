"""Flickr30K Entities: the phrases of the captions and their boxes as region records, one for each training image."""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from batches.base import BrokenRecord
from dataset.broken import BrokenRecordError, broken_record
from dataset.prepare.cleaning import clamped_box, cleaned_texts
from dataset.prepare.counts import Counts
from dataset.prepare.declarations import AnnotatedMedia, DataSet, Files, Found, Records, Source
from dataset.prepare.finders import ImageFiles, MediaNames
from dataset.prepare.held_out import entities_ids, entities_list
from dataset.prepare.options import Options
from dataset.prepare.raw_folder import RawFolder
from dataset.prepare.region_records import region_record
from dataset.records.schema import Box
from utils.errors import UserError, reason_of
from utils.files import check_regular, open_regular
from utils.numerals import plain_number

BATCH = 100
TRAIN = "train.txt"

_PHRASE = re.compile(r"\[/EN#(\d+)((?:/[^/\s\]]+)+)\s+([^\]]*)\]")
NOT_VISUAL = "0"
"""Id of the chain (group of phrases for the same entity) whose phrases do not refer to anything in the image."""


class _Annotations:
    """``Sentences/<id>.txt`` and ``Annotations/<id>.xml``, unpacked or in ``annotations.zip``."""

    def __init__(self, raw: RawFolder):
        sentences, annotations = raw.folder("Sentences"), raw.folder("Annotations")
        self._folders = {".txt": sentences, ".xml": annotations}
        self._archive: zipfile.ZipFile | None = None
        packed = raw.find("annotations.zip") if sentences is None or annotations is None else None
        if packed is not None:
            try:
                check_regular(packed.path)
                self._archive = zipfile.ZipFile(packed.path)
            except (zipfile.BadZipFile, OSError) as error:
                raise UserError(
                    f"{packed} is not a complete zip archive ({reason_of(error)})", remedy="download it again"
                ) from None
            self._members = {name.rpartition("/")[2]: name for name in self._archive.namelist()}
            self.name = str(packed)
        elif sentences is None or annotations is None:
            roots = ", ".join(map(str, raw.roots))
            raise UserError(
                "found neither the folders Sentences and Annotations nor an annotations.zip that contains them",
                where=roots,
            )
        else:
            self.name = str(sentences.parent)

    def read(self, name: str) -> bytes:
        """Reads a file; raises :class:`BrokenRecordError` ("missing annotation") if it does not exist or is damaged."""
        folder = self._folders[name[-4:]]
        try:
            if self._archive is not None:
                return self._archive.read(self._members[name])
            assert folder is not None
            with open_regular(folder / name) as file:
                return file.read()
        except (FileNotFoundError, KeyError):
            raise BrokenRecordError("missing annotation", f"the file {name} does not exist") from None
        except (OSError, zipfile.BadZipFile, zlib.error, RuntimeError) as error:
            raise BrokenRecordError("missing annotation", f"{name}: {type(error).__name__}") from None


def _files(raw: RawFolder) -> Files:
    """Finds the list of training images, and the archive if the files are not unpacked."""
    listed = entities_list(raw, TRAIN) or raw.need(TRAIN)[0]
    packed = raw.find("annotations.zip") if raw.folder("Sentences") is None else None
    _Annotations(raw)  # raises if they are missing
    return {"listed": listed, **({"packed": packed} if packed is not None else {})}


def _read(files: Files, scratch: Path, options: Options) -> Source:
    numbers = list(entities_ids(files["listed"]))
    return Source(_images(numbers, _Annotations(RawFolder([options.raw]))), _record, len(numbers))


def _images(numbers: list[int], annotations: _Annotations) -> Iterator[AnnotatedMedia | BrokenRecord]:
    for number in numbers:
        names = MediaNames(frozenset({f"flickr:{number}"}), [f"{number}.jpg"], f"flickr30k-images/{number}.jpg")
        try:
            content = annotations.read(f"{number}.txt"), annotations.read(f"{number}.xml")
            yield AnnotatedMedia(names, f"{annotations.name}: {number}", (number, *content))
        except BrokenRecordError as error:
            yield broken_record(error, f"{annotations.name}: {number}")


def _record(image: Found, counts: Counts) -> Iterator[dict[str, Any]]:
    number, sentences, annotated = image.values
    size, boxes = _boxes(annotated, f"{image.location}.xml", counts)
    captions, phrases = parsed_sentences(sentences)
    elements = []
    for chain, texts in phrases.items():
        counts.read["phrases"] += len(texts)
        if chain not in boxes:
            reason = "not visual" if chain == NOT_VISUAL else "phrase without box"
            for text in texts:
                counts.skip(reason, f"{image.location}: chain {chain}", repr(text[:40]))
        elif cleaned := cleaned_texts(texts, counts, f"{image.location}: chain {chain}"):
            elements.append({"caption": cleaned, "bb": boxes[chain], "grain": "region"})
    made = {"boxes": len(elements), "phrases": sum(len(element["caption"]) for element in elements)}
    cleaned = cleaned_texts(captions, counts, f"{image.location}.txt") if elements else []
    yield from region_record(image, size, elements, made, counts, cleaned, flickr_id=number)


def parsed_sentences(content: bytes) -> tuple[list[str], dict[str, list[str]]]:
    """Returns the captions without marks, and the phrases of each chain."""
    captions: list[str] = []
    phrases: dict[str, list[str]] = {}
    for line in content.decode("utf-8", "replace").split("\n"):
        if line.strip():
            captions.append(_PHRASE.sub(lambda match: match[3], line))
            for chain, _, text in _PHRASE.findall(line):
                phrases.setdefault(chain, []).append(text)
    return captions, phrases


def _boxes(content: bytes, location: str, counts: Counts) -> tuple[tuple[int, int], dict[str, Box]]:
    """Returns width and height of the image, and the box around all boxes of each chain, in pixels.

    Raises:
        BrokenRecordError: "bad xml", or a size is missing.
    """
    (width, height), corners = chain_corners(content, location, counts)
    found = {}
    for chain, boxes in corners.items():
        if chain == NOT_VISUAL:
            continue
        left, top, right, bottom = merged(boxes)
        box = clamped_box((left, top, right - left, bottom - top), width, height, counts, f"{location}: chain {chain}")
        if box is not None:
            found[chain] = box
    return (width, height), found


def chain_corners(content: bytes, location: str, counts: Counts) -> tuple[tuple[int, int], dict[str, list[Box]]]:
    """Returns width and height of the image, and the boxes of each chain as left, top, right and bottom, in pixels. Boxes that
    are not four numbers are counted.

    Raises:
        BrokenRecordError: "bad xml", or a size is missing.
    """
    if b"<!DOCTYPE" in content or b"<!ENTITY" in content:
        raise BrokenRecordError("bad xml", "it declares entities, which no official file does")
    try:
        root = ElementTree.fromstring(content)
        width, height = (int(plain_number(root.findtext(f"size/{side}", ""))) for side in ("width", "height"))
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise BrokenRecordError("bad xml", str(error)) from None
    corners: dict[str, list[Box]] = {}
    for index, element in enumerate(root.iter("object")):
        if element.find("bndbox") is None:
            continue  # a scene, or an entity without a box
        try:
            values = [plain_number(element.findtext(f"bndbox/{name}", "")) for name in ("xmin", "ymin", "xmax", "ymax")]
        except ValueError:
            counts.skip("wrong type", f"{location}: object[{index}]", "the box is not four numbers")
            continue
        left, top, right, bottom = values
        for name in element.iter("name"):
            corners.setdefault((name.text or "").strip(), []).append((left, top, right, bottom))
    return (width, height), corners


def merged(corners: Sequence[Box]) -> Box:
    """Returns the box around boxes that are given as left, top, right and bottom."""
    left, top, right, bottom = zip(*corners, strict=True)
    return min(left), min(top), max(right), max(bottom)


ENTITIES = DataSet(
    name="flickr30k_entities",
    title="Flickr30K Entities",
    home="github.com/BryanPlummer/flickr30k_entities",
    licence="annotations for research; images under the terms of Flickr",
    files={
        "annotations.zip: Sentences/, Annotations/": "phrases and boxes, packed or not",
        "train.txt": "ids of the training images",
        "flickr30k-images/": "images of Flickr30K",
    },
    sizes={"images": 29_783},
    makes=(
        Records(
            "flickr_entities",
            "an image, its captions, and an element for each chain (phrases for the same entity), with the box around all of its "
            "boxes",
            files=_files,
            read=_read,
            image_files=ImageFiles("flickr", re.compile(r"\d+\.jpg")),
            batch=BATCH,
        ),
    ),
    required=("karpathy_flickr30k",),
    group="4m",
)
