"""OpenImages V6: objects, with attributes where an image has any, and relations of two objects, as region records."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from dataset.files import IMAGE_BYTES, read_file
from dataset.image_ids import Ids, ids_in_url
from dataset.media.encoded import EncodedImage
from dataset.prepare.cleaning import clamped_box, cleaned_text
from dataset.prepare.counts import Counts
from dataset.prepare.declarations import AnnotatedMedia, DataSet, Files, Found, Records, Source, files_named
from dataset.prepare.finders import ImageFiles, MediaNames
from dataset.prepare.options import Options
from dataset.prepare.raw_folder import RawFile, RawFolder
from dataset.prepare.region_records import region_record
from dataset.prepare.rows import KeyedRow, RowFolder
from dataset.prepare.verify import MAX_PIXELS
from dataset.records.schema import Box
from utils.errors import UserError
from utils.numerals import plain_number

OBJECTS = ("oidv6-train-annotations-bbox.csv", "train-annotations-bbox.csv")
"""File name in version 6, and in versions 4 and 5."""
NAMES = ("class-descriptions-boxable.csv", "oidv7-class-descriptions-boxable.csv", "oidv6-class-descriptions.csv")
RELATIONS = ("oidv6-train-annotations-vrd.csv", "challenge-2019-train-vrd.csv")
ATTRIBUTES = ("oidv6-attributes-description.csv", "oidv6-class-descriptions.csv")
ADDRESSES = ("train-images-boxable-with-rotation.csv", "oidv6-train-images-with-labels-with-rotation.csv")
"""Optional files with URLs on Flickr, which identify held-out photographs of COCO and Flickr30K."""

_SIDES = ("XMin", "XMax", "YMin", "YMax")
_FLAGS = ("IsGroupOf", "IsDepiction")
"""Flags of a box: 1, 0, or -1 if nobody has checked."""
COLUMNS = {
    "objects": ("LabelName", *_SIDES, *_FLAGS),
    "relations": ("LabelName1", "LabelName2", *(f"{side}{n}" for n in "12" for side in _SIDES), "RelationshipLabel"),
    "addresses": ("OriginalURL",),
}
"""The columns that are read in addition to ``ImageID``, for each kind of file."""

IS = "is"
"""The relation of an object to its attribute."""

IMAGES = ImageFiles("openimages", re.compile(r"[0-9a-f]{16}\.jpg"))


def image_names(image: str, ids: Ids = frozenset()) -> MediaNames:
    """Returns the names of an image.

    Args:
        ids: known ids of the photograph in other data sets.
    """
    return MediaNames(ids | {f"openimages:{image}"}, [f"{image}.jpg"], f"train_{image[:1]}/{image}.jpg")


def _files(raw: RawFolder) -> Files:
    files = dict(files_named(objects=OBJECTS, names=NAMES)(raw))
    optional = {"relations": RELATIONS, "attributes": ATTRIBUTES, "addresses": ADDRESSES}
    for kind, names in optional.items():
        if any(raw.find(name) for name in names):
            files |= files_named(**{kind: names})(raw)
    if not IMAGES.exist_in(raw):
        raise UserError(
            "the boxes of OpenImages are fractions of the image size, so the images are needed",
            where=raw.roots[0],
            remedy="put them below this folder (train_0.tar.gz … train_f.tar.gz, unpacked)",
        )
    return files


def _read(files: Files, scratch: Path, options: Options) -> Source:
    labels = {label: name for kind in ("attributes", "names") if kind in files for label, name in _names(files, kind)}
    folder = RowFolder(scratch)
    kinds = [kind for kind in COLUMNS if kind in files]
    counts = folder.read(_rows, {kind: files[kind] for kind in kinds}, options.workers)
    objects = folder["objects"]
    if "relations" in kinds:
        folder["relations"].skip_orphans("relations", objects, "objects", counts)

    def images() -> Iterator[AnnotatedMedia]:
        with folder:
            for first in objects.first("objects"):
                rows = {kind: folder[kind].find(kind, first.key) for kind in kinds}
                ids = Ids().union(*(ids_in_url(json.loads(row.text)[0]) for row in rows.pop("addresses", [])))
                yield AnnotatedMedia(image_names(first.key, ids), first.location, rows)

    return Source(images(), partial(_record, labels), objects.count("objects"), counts)


def _names(files: Files, kind: str) -> Iterator[tuple[str, str]]:
    """Yields labels (``/m/011k07``) with their names. Some files have a header, which is yielded like a label."""
    for location, line in files[kind].lines():
        if not line:
            continue
        row = next(csv.reader([line]), [])
        if len(row) != 2:
            raise UserError(
                f"{len(row)} columns, not a label and its name", where=location, remedy="is it OpenImages' file?"
            )
        yield row[0], row[1]


def _rows(kind: str, file: RawFile, counts: Counts) -> Iterator[KeyedRow]:
    """Yields the rows of a file by image. Columns are found by name, since their order differs between versions."""
    lines = file.lines()
    _, header = next(lines, ("", ""))
    columns, needed = [name.strip() for name in header.split(",")], ("ImageID", *COLUMNS[kind])
    if missing := [name for name in needed if name not in columns]:
        raise UserError(f"{file} has no column {', '.join(missing)}", remedy="is it OpenImages' file?")
    at = [columns.index(name) for name in needed]
    for location, line in lines:
        if not line:
            continue
        # Titles and authors in the file of URLs may contain commas.
        row = next(csv.reader([line.replace("\r", " ")])) if '"' in line else line.split(",")
        if kind != "addresses":
            counts.read[kind] += 1
        if len(row) != len(columns):
            counts.skip("wrong columns", location, f"{len(row)} columns, not {len(columns)}")
        else:
            image, *values = (row[index].strip() for index in at)
            yield KeyedRow(kind, image, location, json.dumps(values))


def _record(labels: Mapping[str, str], image: Found, counts: Counts) -> Iterator[dict[str, Any]]:
    content = read_file(image.file, IMAGE_BYTES)
    _, height, width = EncodedImage(content, MAX_PIXELS, "stored").shape
    reader = _Reader(labels, width, height, counts)
    elements = reader.elements(image.values["objects"], image.values.get("relations", []))
    made = Counter("regions" if element["grain"] == "region" else "objects" for element in elements)
    yield from region_record(image, None, elements, made, counts)


class _Reader:
    """Converts the rows of an image of ``width`` x ``height`` pixels to elements."""

    def __init__(self, names: Mapping[str, str], width: int, height: int, counts: Counts):
        self.names, self.width, self.height, self.counts = names, width, height, counts

    def elements(self, objects: list[KeyedRow], relations: list[KeyedRow]) -> list[dict[str, Any]]:
        """Returns the objects, and the relations of two objects, such as "boy plays guitar", with the box around both.

        A box around a group of five or more objects is skipped. Boxes with unknown flags are used and counted. Attributes, which
        are relations too, are added to their object.
        """
        found: dict[tuple[str, Box], dict[str, Any]] = {}
        for row in objects:
            label, *sides, group, depiction = json.loads(row.text)
            for flag, value in zip(_FLAGS, (group, depiction), strict=True):
                if value == "-1":
                    self.counts.read[f"objects with unknown {flag}"] += 1
            if group == "1":
                self.counts.skip("group of objects", row.location)
            elif (described := self._described(label, sides, row.location)) is not None:
                found.setdefault(described, _element(*described, "object"))
        for row in relations:
            first, second, *sides, relation = json.loads(row.text)
            one = self._described(first, sides[:4], row.location)
            other = self._described(second, sides[4:], row.location)
            if one is None or other is None:
                continue
            if relation == IS:
                element = found.setdefault(one, _element(*one, "object"))
                attributes = element.setdefault("attributes", [])
                attributes += [] if other[0] in attributes else [other[0]]
                continue
            caption = cleaned_text(f"{one[0]} {relation.replace('_', ' ')} {other[0]}", self.counts, row.location)
            if caption is not None:
                box = around(one[1], other[1])
                found.setdefault((caption, box), _element(caption, box, "region"))
        return list(found.values())

    def _described(self, label: str, sides: Sequence[str], location: str) -> tuple[str, Box] | None:
        """Returns the name and the box of an object. If the name or the box cannot be used, counts the reason and returns
        None."""
        box = self._box(sides, location)
        name = self._name(label, location) if box is not None else None
        return None if box is None or name is None else (name, box)

    def _name(self, label: str, location: str) -> str | None:
        if label not in self.names:
            self.counts.skip("unknown category", location, label[:40])
            return None
        return cleaned_text(self.names[label], self.counts, location)

    def _box(self, sides: Sequence[str], location: str) -> Box | None:
        """Returns the box, given left, right, top and bottom as fractions of the image size. No other data set uses this
        order."""
        try:
            left, right, top, bottom = (plain_number(side) for side in sides)
        except ValueError:
            self.counts.skip("wrong type", location, f"{list(sides)} is not a box")
            return None
        corner = left * self.width, top * self.height
        size = (right - left) * self.width, (bottom - top) * self.height
        return clamped_box([*corner, *size], self.width, self.height, self.counts, location)


def _element(caption: str, box: Box, grain: str) -> dict[str, Any]:
    return {"caption": caption, "bb": box, "grain": grain}


def around(one: Box, other: Box) -> Box:
    """Returns the smallest box (x, y, w, h) around two boxes."""
    x, y = min(one[0], other[0]), min(one[1], other[1])
    right, bottom = max(one[0] + one[2], other[0] + other[2]), max(one[1] + one[3], other[1] + other[3])
    return x, y, round(right - x, 2), round(bottom - y, 2)


OPENIMAGES = DataSet(
    name="openimages",
    title="OpenImages V6",
    home="storage.googleapis.com/openimages",
    licence="annotations CC BY 4.0; images CC BY 2.0, as listed",
    files={
        OBJECTS[0]: "objects",
        NAMES[0]: "names of the objects",
        f"{RELATIONS[0]}, {ATTRIBUTES[0]}": "relations and attributes; optional",
        ADDRESSES[0]: "URLs on Flickr, to find photographs that are held out; optional",
        "train_0/ … train_f/": "images (train_0.tar.gz …), of any size: boxes are fractions of it",
    },
    sizes={"images": 1_743_042},
    makes=(
        Records(
            "openimages",
            "an image, its objects with attributes, and relations of two objects",
            files=_files,
            read=_read,
            image_files=IMAGES,
        ),
    ),
    group="1b",
    paper="1.7M images, 4.2M objects",
)
