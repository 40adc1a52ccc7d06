"""Flickr30K Entities: the phrases of the captions and their boxes as region records, one for each training image."""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from dataset.image_ids import id_number
from dataset.prepare.building import Job, Work, image_jobs
from dataset.prepare.cleaning import cleaned_texts, placed_box
from dataset.prepare.counts import Counts
from dataset.prepare.image_finder import ImageFinder, ImageNames, SetFiles
from dataset.prepare.raw_folder import RawFile, RawFolder
from dataset.prepare.sets.base import DataSet, Opened, Product, Request
from dataset.prepare.stored_size import fit_to_stored
from dataset.records.broken import BrokenRecordError
from dataset.records.schema import Box
from utils.errors import UserError

IMAGES = SetFiles("flickr", re.compile(r"\d+\.jpg"))
BATCH = 100
TRAIN = "train.txt"

_PHRASE = re.compile(r"\[/EN#(\d+)((?:/[^/\s\]]+)+)\s+([^\]]*)\]")
_NOT_VISUAL = "0"
"""Chain of phrases that nothing in the image stands for."""


@dataclass(frozen=True)
class _Annotated:
    """An image on its way to a worker: path of its record, id, name of the set's files, and the content of its two files."""

    path: str
    number: int
    place: str
    sentences: bytes
    boxes: bytes


class _Files:
    """``Sentences/<id>.txt`` and ``Annotations/<id>.xml``, unpacked or in ``annotations.zip``."""

    def __init__(self, raw: RawFolder):
        sentences, annotations = raw.folder("Sentences"), raw.folder("Annotations")
        self._folders = {".txt": sentences, ".xml": annotations}
        self._archive: zipfile.ZipFile | None = None
        packed = raw.find("annotations.zip") if sentences is None or annotations is None else None
        if packed is not None:
            try:
                self._archive = zipfile.ZipFile(packed.path)
            except (zipfile.BadZipFile, OSError) as error:
                raise UserError(f"{packed} is no whole zip archive ({error}); download it again") from None
            self._members = {name.rpartition("/")[2]: name for name in self._archive.namelist()}
            self.name = str(packed)
        elif sentences is None or annotations is None:
            roots = ", ".join(map(str, raw.roots))
            raise UserError(f"{roots}: no folders Sentences and Annotations, and no annotations.zip that has them")
        else:
            self.name = str(sentences.parent)

    def read(self, name: str) -> bytes:
        """Raises :class:`BrokenRecordError` ("missing annotation") where a file is not there or damaged."""
        folder = self._folders[name[-4:]]
        try:
            if self._archive is not None:
                return self._archive.read(self._members[name])
            assert folder is not None
            return (folder / name).read_bytes()
        except (FileNotFoundError, KeyError):
            raise BrokenRecordError("missing annotation", f"{self.name}: {name}", "the file is not there") from None
        except (OSError, zipfile.BadZipFile, zlib.error, RuntimeError) as error:
            raise BrokenRecordError("missing annotation", f"{self.name}: {name}", type(error).__name__) from None


def open_entities(request: Request) -> Opened:
    """Region records: a phrase's box is the smallest one around all boxes of its chain."""
    raw = request.raw
    sentences = raw.folder("Sentences")
    packed = raw.find("annotations.zip") if sentences is None else None
    beside = sentences or (packed.path if packed is not None else None)
    listed = (raw.beside(beside, TRAIN) if beside is not None else None) or raw.need(TRAIN)[0]
    files = _Files(raw)
    finder = ImageFinder(raw, request.folder, IMAGES, request.held_out, request.excluded, request.verified)

    def work(_: Path) -> Work:
        numbers = _training_ids(listed)
        return Work(partial(fit_to_stored, request.folder, _records), _jobs(numbers, files, finder), len(numbers))

    return Opened([listed, *([packed] if packed is not None else [])], work, finder)


def _training_ids(file: RawFile) -> list[int]:
    with file.open() as stream:
        lines = [line.strip() for line in stream.read().decode("utf-8", "replace").split("\n")]
    for number, line in enumerate(lines, start=1):
        if line and id_number(line) is None:
            raise UserError(f"{file}:{number}: {line[:40]!r} is no id of Flickr30K; is it the official file?")
    return [int(line) for line in lines if line]


def _jobs(numbers: list[int], files: _Files, finder: ImageFinder) -> Iterator[Job]:
    def item_of(number: int, counts: Counts) -> _Annotated | None:
        place = f"{files.name}: {number}"
        image = ImageNames(frozenset({f"flickr:{number}"}), [f"{number}.jpg"], f"flickr30k-images/{number}.jpg")
        path = finder.find(image, counts, place)
        if path is None:
            return None
        try:
            return _Annotated(path, number, place, files.read(f"{number}.txt"), files.read(f"{number}.xml"))
        except BrokenRecordError as error:
            counts.leave_out(error.kind, error.location, error.message)
            return None

    return image_jobs(numbers, item_of, BATCH)


def _records(items: list[_Annotated], counts: Counts) -> Iterator[dict[str, Any]]:
    for item in items:
        try:
            size, boxes = _boxes(item.boxes, f"{item.place}.xml", counts)
        except BrokenRecordError as error:
            counts.leave_out(error.kind, error.location, error.message)
            continue
        captions, phrases = _parsed_sentences(item.sentences)
        elements = []
        for chain, texts in phrases.items():
            counts.read["phrases"] += len(texts)
            if chain not in boxes:
                reason = "not visual" if chain == _NOT_VISUAL else "phrase without box"
                for text in texts:
                    counts.leave_out(reason, f"{item.place}: chain {chain}", repr(text[:40]))
            elif cleaned := cleaned_texts(texts, counts, f"{item.place}: chain {chain}"):
                counts.made["phrases"] += len(cleaned)
                elements.append({"caption": cleaned, "bb": boxes[chain], "grain": "region"})
        if not elements:
            counts.leave_out("image without boxes", item.place)
            continue
        counts.made["images"] += 1
        counts.made["boxes"] += len(elements)
        texts = cleaned_texts(captions, counts, f"{item.place}.txt")
        caption = {"caption": texts} if texts else {}
        yield {"image": item.path, **caption, "size": size, "elems": elements, "flickr_id": item.number}


def _parsed_sentences(content: bytes) -> tuple[list[str], dict[str, list[str]]]:
    """The captions without marks, and the phrases of each chain."""
    captions: list[str] = []
    phrases: dict[str, list[str]] = {}
    for line in content.decode("utf-8", "replace").split("\n"):
        if line.strip():
            captions.append(_PHRASE.sub(lambda match: match[3], line))
            for chain, _, text in _PHRASE.findall(line):
                phrases.setdefault(chain, []).append(text)
    return captions, phrases


def _boxes(content: bytes, place: str, counts: Counts) -> tuple[tuple[int, int], dict[str, Box]]:
    """Width and height of the image, and the box of each chain, in pixels: around all of its boxes.

    Raises:
        BrokenRecordError: "bad xml", or a size is missing.
    """
    if b"<!DOCTYPE" in content or b"<!ENTITY" in content:
        raise BrokenRecordError("bad xml", place, "it declares entities, as no official file does")
    try:
        root = ElementTree.fromstring(content)
        width, height = int(root.findtext("size/width", "")), int(root.findtext("size/height", ""))
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise BrokenRecordError("bad xml", place, str(error)) from None
    corners: dict[str, list[tuple[float, ...]]] = {}
    for index, element in enumerate(root.iter("object")):
        if element.find("bndbox") is None:
            continue  # a scene, or something that no box shows
        try:
            values = [float(element.findtext(f"bndbox/{name}", "")) for name in ("xmin", "ymin", "xmax", "ymax")]
        except ValueError:
            counts.leave_out("wrong type", f"{place}: object[{index}]", "its box has no four numbers")
            continue
        for name in element.iter("name"):
            corners.setdefault((name.text or "").strip(), []).append(tuple(values))
    found = {}
    for chain, of_chain in corners.items():
        left, top, right, bottom = (
            pick(column) for pick, column in zip((min, min, max, max), zip(*of_chain, strict=True), strict=True)
        )
        if chain == _NOT_VISUAL:
            continue
        box = placed_box((left, top, right - left, bottom - top), width, height, counts, f"{place}: chain {chain}")
        if box is not None:
            found[chain] = box
    return (width, height), found


ENTITIES = DataSet(
    title="Flickr30K Entities",
    home="github.com/BryanPlummer/flickr30k_entities",
    licence="annotations for research; images under the terms of Flickr",
    files={
        "annotations.zip: Sentences/, Annotations/": "phrases and boxes, packed or not",
        "train.txt": "ids of the training images",
        "flickr30k-images/": "images of Flickr30K",
    },
    sizes={"images": 29_783},
    products=(Product("flickr_entities", "an image, its captions, and the phrases with their boxes", open_entities),),
    required=("karpathy_flickr30k",),
)
