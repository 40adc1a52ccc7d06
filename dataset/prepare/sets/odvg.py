"""ODVG: JSON lines of objects and of grounded phrases, on which Grounding DINO and its successors are trained.

The form is described in ``data_format.md`` of github.com/longzw1997/Open-GroundingDino, and read by ``mmdet/datasets/odvg.py`` of
github.com/open-mmlab/mmdetection. Both give boxes as x1, y1, x2, y2 in pixels. A box of a region may also be a list of boxes, and
its phrase a list of texts that belong together. Objects have a numeric ``label`` and usually a name (``category``); if they lack
names, the names are in a file whose name contains ``label_map``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from batches.base import BrokenRecord
from dataset.broken import BrokenRecordError, broken_record
from dataset.prepare.cleaning import cleaned_text, cleaned_texts, corner_box
from dataset.prepare.counts import Counts
from dataset.prepare.declarations import AnnotatedMedia, DataSet, Files, Found, Records, Source
from dataset.prepare.finders import ANY_IMAGES, names_of_path
from dataset.prepare.options import Options
from dataset.prepare.phrases import Phrases
from dataset.prepare.raw_folder import RawFile, RawFolder
from dataset.prepare.region_records import region_record, stored_size
from dataset.records.schema import Box, parse_object
from utils.errors import UserError

SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz")
LABEL_MAP = "label_map"
"""Text that the name of every label map contains."""

_FIRST_LINE = 1 << 22
"""Maximum length in bytes of the first line, from which a file is recognised."""

Names = Mapping[str, str]
"""Names of the objects by label."""


class Line(NamedTuple):
    """A line of a file: its text, and the name of its file, which determines the label map."""

    text: bytes
    file: str


def _files(raw: RawFolder) -> Files:
    """Finds all files of ODVG lines, and the names of their labels."""
    files: dict[str, RawFile] = {}
    for name in sorted(raw.files):
        if not name.endswith(SUFFIXES):
            continue
        for path in raw.files[name]:
            if LABEL_MAP in name or _is_odvg(RawFile(path)):
                files[path.as_posix()] = RawFile(path)
    if all(LABEL_MAP in Path(name).name for name in files):
        raise UserError(
            "no file *.jsonl or *.json has lines with filename, and detection or grounding",
            where=", ".join(map(str, raw.roots)),
        )
    return files


def _is_odvg(file: RawFile) -> bool:
    with file.open() as stream:
        line = stream.readline(_FIRST_LINE)
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(values, dict) and "filename" in values and ("detection" in values or "grounding" in values)


def _read(files: Files, scratch: Path, options: Options) -> Source:
    maps = {name: _names_in(file) for name, file in files.items() if LABEL_MAP in file.path.name}
    lines = {name: file for name, file in files.items() if name not in maps}
    names = {name: maps[of] for name in lines if (of := _map_of(name, list(maps))) is not None}
    return Source(_annotated(lines), partial(_record, names), sum(map(_count_lines, lines.values())))


def _names_in(file: RawFile) -> Names:
    with file.open() as stream:
        content = stream.read()
    try:
        values = json.loads(content)
        return {str(label): str(name) for label, name in values.items()}
    except (ValueError, AttributeError):
        raise UserError(f'{file} is not a label map: it should be a JSON object like {{"0": "person"}}') from None


def _map_of(name: str, maps: list[str]) -> str | None:
    """Returns the label map of a file. If its folder contains several maps, the map whose name begins most like the file's
    name is used; a single map is used regardless of its name. Returns None if no map fits."""
    path = Path(name)
    near = [each for each in maps if Path(each).parent == path.parent]
    begins = {each: Path(each).name.partition(LABEL_MAP)[0].rstrip("_-.") for each in near}
    fitting = [each for each in near if begins[each] and path.name.startswith(begins[each])]
    if fitting:
        return max(fitting, key=lambda each: len(begins[each]))
    return near[0] if len(near) == 1 else None


def _count_lines(file: RawFile) -> int:
    with file.open() as stream:
        return sum(block.count(b"\n") for block in iter(partial(stream.read, 1 << 20), b""))


def _annotated(files: Files) -> Iterator[AnnotatedMedia | BrokenRecord]:
    for name, file in files.items():
        seen: set[int] = set()
        with file.open() as stream:
            for number, line in enumerate(stream, start=1):
                if not line.strip():
                    continue
                location = f"{file}:{number}"
                digest = hash(line.strip())
                if digest in seen:
                    yield BrokenRecord(location, "duplicate row", "identical to an earlier line")
                    continue
                seen.add(digest)
                try:
                    path = parse_object(line).get("filename")
                    if not isinstance(path, str) or not path.strip("./"):
                        raise BrokenRecordError("missing key", f"filename is {path!r:.80}")
                    yield AnnotatedMedia(names_of_path(path), location, Line(line, name))
                except BrokenRecordError as error:
                    yield broken_record(error, location)


def _record(names_of: Mapping[str, Names], image: Found, counts: Counts) -> Iterator[dict[str, Any]]:
    line: Line = image.values
    row = json.loads(line.text)
    size = _size(row, image, counts)
    if size is None:
        return
    phrases = Phrases(counts)
    made = {"objects": 0, "phrases": 0}
    for instance in _listed(row, "detection", "instances", counts, image.location):
        name = instance.get("category")
        if not isinstance(name, str) or not name.strip():
            name = names_of.get(line.file, {}).get(str(instance.get("label")))
        if name is None:
            label = f"label {instance.get('label')!r:.40} has no category, and no label map names it"
            counts.skip("unknown category", image.location, label)
            continue
        text = cleaned_text(name.replace("_", " "), counts, image.location)
        if text is not None:
            _add(phrases, [text], instance.get("bbox"), "object", size, image.location, counts)
    made["objects"] = phrases.boxes
    absent = [{**each, "bbox": []} for each in _extension(row, "absent") if isinstance(each, dict)]
    for region in [*_listed(row, "grounding", "regions", counts, image.location), *absent]:
        phrase = region.get("phrase")
        if isinstance(phrase, list) and all(isinstance(part, str) for part in phrase):
            phrase = " ".join(phrase)
        texts = cleaned_texts([phrase, *_extension(region, "alternatives")], counts, image.location)
        if texts:
            grain = "object" if region.get("grain") == "object" else "region"
            _add(phrases, texts, region.get("bbox"), grain, size, image.location, counts)
    made["phrases"] = phrases.boxes - made["objects"]
    grounding = row.get("grounding")
    caption = grounding.get("caption") if isinstance(grounding, dict) else None
    captions = row["image_caption"] if isinstance(row.get("image_caption"), list) else [caption]
    texts = cleaned_texts([each for each in captions if each is not None], counts, image.location)
    numbers = {unit: number for unit, number in made.items() if number}
    yield from region_record(image, size, phrases.elements(), numbers, counts, texts)


def _extension(values: Mapping[str, Any], key: str) -> list[Any]:
    """Returns the list under a key that only lines written by this project have (:mod:`dataset.prepare.to_odvg`)."""
    found = values.get(key)
    return found if isinstance(found, list) else []


def _size(row: Mapping[str, Any], image: Found, counts: Counts) -> tuple[int, int] | None:
    """Returns the size of the annotated image: the size in the row or, if there is none, the size of the stored image."""
    sides = row.get("width"), row.get("height")
    if sides == (None, None):
        size = stored_size(image.file)
        if size is None:
            counts.skip("missing key", image.location, "no width and height, and no readable image to get them from")
        return size
    try:
        width, height = (int(side) for side in sides if isinstance(side, int | float))
        if min(width, height) > 0:
            return width, height
    except (TypeError, ValueError, OverflowError):
        pass
    counts.skip("wrong type", image.location, f"width and height are {str(sides)[:60]}")
    return None


def _listed(
    row: Mapping[str, Any], key: str, listed: str, counts: Counts, location: str
) -> Iterator[Mapping[str, Any]]:
    """Yields the objects of the list ``row[key][listed]``; the list may be missing."""
    part = row.get(key)
    if part is None:
        return
    values = part.get(listed) if isinstance(part, dict) else None
    if not isinstance(values, list):
        counts.skip("wrong type", location, f"{key} has no list {listed}")
        return
    counts.read["objects" if key == "detection" else "phrases"] += len(values)
    for value in values:
        if isinstance(value, dict):
            yield value
        else:
            counts.skip("wrong type", location, f"{key}.{listed} contains {str(value)[:40]}")


def _add(
    phrases: Phrases, texts: list[str], value: Any, grain: str, size: tuple[int, int], location: str, counts: Counts
) -> None:
    """Adds a box, or each of a list of boxes. An empty list means that the image does not show the phrase."""
    if value == []:
        phrases.add_absent(texts, grain)
        return
    boxes = value if isinstance(value, list) and isinstance(value[0], list) else [value]
    for each in boxes:
        box: Box | None = corner_box(each, *size, counts, location)
        if box is not None:
            phrases.add(texts, box, grain, location)


ODVG = DataSet(
    name="odvg",
    title="ODVG",
    home="github.com/longzw1997/Open-GroundingDino",
    licence="same as the converted data set",
    files={
        "*.jsonl, *.json": "lines with filename, width, height, and detection or grounding; several files become one folder",
        "*label_map*.json": "names of the labels, if the lines have no category; next to the lines",
        "images": "in any folders; each path ends like filename",
    },
    sizes={},
    makes=(
        Records(
            "odvg",
            "an image and the boxes of its objects and phrases",
            files=_files,
            read=_read,
            image_files=ANY_IMAGES,
        ),
    ),
)
