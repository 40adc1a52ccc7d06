"""OpenImages V6: objects, with attributes where an image has any, and relations of two objects, as region records."""

from __future__ import annotations

import csv
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from dataset.files import IMAGE_BYTES, read_file
from dataset.image_ids import Ids, ids_in_url
from dataset.media.encoded import EncodedImage
from dataset.prepare.box_store import BoxStore, Row, StoredImage
from dataset.prepare.building import Job, Work, image_jobs
from dataset.prepare.cleaning import cleaned_text, placed_box
from dataset.prepare.counts import Counts
from dataset.prepare.image_finder import ImageFinder, ImageNames, SetFiles
from dataset.prepare.raw_folder import RawFile
from dataset.prepare.reading import read_files
from dataset.prepare.sets.base import DataSet, Opened, Product, Request
from dataset.prepare.sets.web import lines_of
from dataset.prepare.verify import MAX_PIXELS
from dataset.records.broken import BrokenRecordError
from dataset.records.schema import Box
from utils.errors import UserError

OBJECTS = ("oidv6-train-annotations-bbox.csv", "train-annotations-bbox.csv")
"""Of version 6, and the same of version 4 and 5."""
NAMES = ("class-descriptions-boxable.csv", "oidv7-class-descriptions-boxable.csv", "oidv6-class-descriptions.csv")
RELATIONS = ("oidv6-train-annotations-vrd.csv", "challenge-2019-train-vrd.csv")
ATTRIBUTES = ("oidv6-attributes-description.csv", "oidv6-class-descriptions.csv")
ADDRESSES = ("train-images-boxable-with-rotation.csv", "oidv6-train-images-with-labels-with-rotation.csv")
"""Optional: addresses on Flickr, by which held-out photographs of COCO and Flickr30K are known."""

KINDS = ("objects", "relations", "addresses")
_SIDES = ("XMin", "XMax", "YMin", "YMax")
COLUMNS = {
    "objects": ("LabelName", *_SIDES, "IsGroupOf"),
    "relations": ("LabelName1", "LabelName2", *(f"{side}{n}" for n in "12" for side in _SIDES), "RelationshipLabel"),
    "addresses": ("OriginalURL",),
}
"""The columns that are read, by kind; ``ImageID`` comes before them."""

IS = "is"
"""The relation of an object to its attribute."""

IMAGES = SetFiles("openimages", re.compile(r"[0-9a-f]{16}\.jpg"))
BATCH = 200
"""Images of a job."""


class _Image(NamedTuple):
    """An image on its way to a worker: the path of its record and that of its file, and place and columns of each of its rows by
    kind."""

    path: str
    file: Path
    place: str
    rows: Mapping[str, list[tuple[str, str]]]


def open_regions(request: Request) -> Opened:
    """Region records, one for each image."""
    raw = request.raw
    files = {"objects": _first(request, OBJECTS) or raw.need(OBJECTS[0])[0]}
    files |= {"names": _first(request, NAMES) or raw.need(NAMES[0])[0]}
    optional = {"relations": RELATIONS, "attributes": ATTRIBUTES, "addresses": ADDRESSES}
    files |= {kind: file for kind, names in optional.items() if (file := _first(request, names)) is not None}
    finder = ImageFinder(raw, request.folder, IMAGES, request.held_out, request.excluded, request.verified)

    def work(scratch: Path) -> Work:
        if finder.annotations_alone:
            raise UserError(
                f"{raw.roots[0]}: OpenImages' boxes are shares of their images, whose sizes only the images tell; put them below "
                "it (train_0.tar.gz … train_f.tar.gz, unpacked)"
            )
        names = {
            label: name for kind in ("attributes", "names") if kind in files for label, name in _names(files[kind])
        }
        folder = tempfile.TemporaryDirectory(prefix="pieces-", dir=scratch)
        counts = Counts()
        stored = {kind: files[kind] for kind in KINDS if kind in files}
        for counted in read_files(partial(_fill, Path(folder.name)), stored, request.workers):
            counts.add(counted)
        objects = Path(folder.name, "objects")
        with BoxStore(objects, ("objects",)) as store:
            total = len(store)
        if "relations" in stored:
            with BoxStore(Path(folder.name, "relations"), ("relations",)) as store:
                number, first = store.of_no_image("relations", objects)
            if first is not None:
                counts.left_out["unknown image"] += number - 1
                counts.leave_out("unknown image", first.place, f"{first.key} has no objects")
        return Work(partial(_records, names), _jobs(folder, finder, list(stored), counts), total)

    return Opened(list(files.values()), work, finder)


def _first(request: Request, names: Sequence[str]) -> RawFile | None:
    return next((file for name in names if (file := request.raw.find(name)) is not None), None)


def _names(file: RawFile) -> Iterator[tuple[str, str]]:
    """Labels (``/m/011k07``) with their names; a header, which some of the files have, is passed over."""
    for place, line in lines_of(file):
        if not line:
            continue
        row = next(csv.reader([line]), [])
        if len(row) != 2:
            raise UserError(f"{place}: {len(row)} columns, not a label and its name; is it OpenImages' file?")
        yield row[0], row[1]


def _fill(folder: Path, kind: str, file: RawFile) -> Counts:
    """Store the rows of a file by image; runs in a worker process."""
    counts = Counts()
    path = folder / kind
    path.unlink(missing_ok=True)  # what a process left that was killed, for which this one is in
    with BoxStore(path, (kind,)) as store:
        store.add_boxes(kind, _rows(file, kind, counts))
        if kind == "objects":
            store.add_images_of_boxes(kind)
    return counts


def _rows(file: RawFile, kind: str, counts: Counts) -> Iterator[Row]:
    """The rows of a file, found by the names of its columns, which are in no fixed order from version to version."""
    lines = lines_of(file)
    _, header = next(lines, ("", ""))
    columns, wanted = [name.strip() for name in header.split(",")], ("ImageID", *COLUMNS[kind])
    if missing := [name for name in wanted if name not in columns]:
        raise UserError(f"{file} has no column {', '.join(missing)}; is it OpenImages' file?")
    at = [columns.index(name) for name in wanted]
    for place, line in lines:
        if not line:
            continue
        # Titles and authors, in the file of addresses, may hold commas.
        row = next(csv.reader([line.replace("\r", " ")])) if '"' in line else line.split(",")
        if kind != "addresses":
            counts.read[kind] += 1
        if len(row) != len(columns):
            counts.leave_out("wrong columns", place, f"{len(row)} columns, not {len(columns)}")
        else:
            image, *values = (row[index].strip() for index in at)
            yield Row(image, place, json.dumps(values))


def image_names(image: str, ids: Ids = frozenset()) -> ImageNames:
    """How an image is called; ``ids``: those that are known of its photograph."""
    return ImageNames(ids | {f"openimages:{image}"}, [f"{image}.jpg"], f"train_{image[:1]}/{image}.jpg")


def _jobs(
    folder: tempfile.TemporaryDirectory[str], finder: ImageFinder, kinds: Sequence[str], counts: Counts
) -> Iterator[Job]:
    records = os.path.realpath(finder.folder)
    with folder, ExitStack() as opened:
        stores = {kind: opened.enter_context(BoxStore(Path(folder.name, kind), (kind,))) for kind in kinds}

        def item_of(stored: StoredImage, counts: Counts) -> _Image | None:
            key, place, _ = stored.image
            rows = {kind: store.boxes(kind, key) for kind, store in stores.items()}
            addresses = [json.loads(text)[0] for _, text in rows.pop("addresses", [])]
            path = finder.find(image_names(key, Ids().union(*map(ids_in_url, addresses))), counts, place)
            return None if path is None else _Image(path, Path(os.path.normpath(f"{records}/{path}")), place, rows)

        yield from image_jobs(stores["objects"].images(), item_of, BATCH, counts)


def _records(names: Mapping[str, str], items: list[_Image], counts: Counts) -> Iterator[dict[str, Any]]:
    for image in items:
        try:
            content = read_file(image.file, IMAGE_BYTES, str(image.file))
            _, height, width = EncodedImage(content, MAX_PIXELS, str(image.file), "stored").shape
        except BrokenRecordError as error:
            counts.leave_out(error.kind, image.place, str(error))
            continue
        reader = _Reader(names, width, height, counts)
        elements = reader.elements(image.rows["objects"], image.rows.get("relations", []))
        if not elements:
            counts.leave_out("image without boxes", image.place)
            continue
        counts.made["images"] += 1
        for element in elements:
            counts.made["regions" if element["grain"] == "region" else "objects"] += 1
        yield {"image": image.path, "elems": elements}


class _Reader:
    """Makes elements of the rows of an image of ``width`` x ``height`` pixels."""

    def __init__(self, names: Mapping[str, str], width: int, height: int, counts: Counts):
        self.names, self.width, self.height, self.counts = names, width, height, counts

    def elements(self, objects: list[tuple[str, str]], relations: list[tuple[str, str]]) -> list[dict[str, Any]]:
        """The single objects, and the relations of two of them, such as "boy plays guitar", with the box around both.

        A box around a group of five or more is left out. An object has the attributes that relations give it.
        """
        found: dict[tuple[str, Box], dict[str, Any]] = {}
        for place, text in objects:
            label, *sides, group = json.loads(text)
            if group == "1":
                self.counts.leave_out("group of objects", place)
            elif (described := self._described(label, sides, place)) is not None:
                found.setdefault(described, _element(*described, "object"))
        for place, text in relations:
            first, second, *sides, relation = json.loads(text)
            one, of = self._described(first, sides[:4], place), self._described(second, sides[4:], place)
            if one is None or of is None:
                continue
            if relation == IS:
                element = found.setdefault(one, _element(*one, "object"))
                attributes = element.setdefault("attributes", [])
                attributes += [] if of[0] in attributes else [of[0]]
                continue
            caption = cleaned_text(f"{one[0]} {relation.replace('_', ' ')} {of[0]}", self.counts, place)
            if caption is not None:
                box = around(one[1], of[1])
                found.setdefault((caption, box), _element(caption, box, "region"))
        return list(found.values())

    def _described(self, label: str, sides: Sequence[str], place: str) -> tuple[str, Box] | None:
        """Name and box; None, and counted, if one is unusable."""
        box = self._box(sides, place)
        name = self._name(label, place) if box is not None else None
        return None if box is None or name is None else (name, box)

    def _name(self, label: str, place: str) -> str | None:
        if label not in self.names:
            self.counts.leave_out("unknown category", place, label[:40])
            return None
        return cleaned_text(self.names[label], self.counts, place)

    def _box(self, sides: Sequence[str], place: str) -> Box | None:
        """The box of four shares of the image. Their order is left, right, top, bottom, other than in every other set."""
        try:
            left, right, top, bottom = (float(side) for side in sides)
        except ValueError:
            self.counts.leave_out("wrong type", place, f"{list(sides)} is no box")
            return None
        corner = left * self.width, top * self.height
        size = (right - left) * self.width, (bottom - top) * self.height
        return placed_box([*corner, *size], self.width, self.height, self.counts, place)


def _element(caption: str, box: Box, grain: str) -> dict[str, Any]:
    return {"caption": caption, "bb": box, "grain": grain}


def around(one: Box, other: Box) -> Box:
    """The smallest box (x, y, w, h) around two boxes."""
    x, y = min(one[0], other[0]), min(one[1], other[1])
    right, bottom = max(one[0] + one[2], other[0] + other[2]), max(one[1] + one[3], other[1] + other[3])
    return x, y, round(right - x, 2), round(bottom - y, 2)


OPENIMAGES = DataSet(
    title="OpenImages V6",
    home="storage.googleapis.com/openimages",
    licence="annotations CC BY 4.0; images CC BY 2.0, as listed",
    files={
        OBJECTS[0]: "objects",
        NAMES[0]: "names of the objects",
        f"{RELATIONS[0]}, {ATTRIBUTES[0]}": "relations and attributes; optional",
        ADDRESSES[0]: "addresses on Flickr, to find photographs that are held out; optional",
        "train_0/ … train_f/": "images (train_0.tar.gz …), of any size: boxes are shares of them",
    },
    sizes={"images": 1_743_042},
    products=(
        Product("openimages", "an image, its objects with attributes, and relations of two objects", open_regions),
    ),
    required=(),
)
