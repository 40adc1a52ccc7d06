"""Visual Genome: objects with attributes and described regions as region records; region descriptions as image-text records."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from dataset.image_ids import id_number, needed_id
from dataset.prepare.cleaning import annotated_size, clamped_box, cleaned_text
from dataset.prepare.counts import Counts
from dataset.prepare.declarations import AnnotatedMedia, DataSet, Files, Found, Records, Source, files_named
from dataset.prepare.finders import ImageFiles, MediaNames
from dataset.prepare.held_out import VG_SPLITS, ids_in_image_data
from dataset.prepare.json_pieces import official_pieces
from dataset.prepare.line_shards import Convert
from dataset.prepare.options import Options
from dataset.prepare.raw_folder import RawFile
from dataset.prepare.region_records import region_record
from dataset.prepare.rows import KeyedRow, RowFolder
from utils.errors import UserError

IMAGES = ImageFiles("vg", re.compile(r"\d{1,7}\.jpg"))
BATCH = 50
"""Number of images, with about 2,500 regions, that a process converts at a time."""

CAPTIONS_OF_AN_IMAGE = 8
"""Number of region descriptions that become captions of their image: the descriptions of the largest boxes. This yields about
770,000 captions, as in the 4M set; the authors' selection is not published."""

LISTED = "images"
"""Name of the file that lists the images. Each of the other files is named after the list that its items contain."""


def vg_names(image_id: int, others: frozenset[str] = frozenset()) -> MediaNames:
    """Returns the names of an image of Visual Genome or GQA.

    Args:
        others: the image's ids in other data sets.
    """
    return MediaNames(frozenset({f"vg:{image_id}"}) | others, [f"{image_id}.jpg"], f"images/{image_id}.jpg")


def _read(convert: Convert, files: Files, scratch: Path, options: Options) -> Source:
    listed = read_image_data(files[LISTED])
    folder = RowFolder(scratch)
    items = {name: file for name, file in files.items() if name != LISTED}
    counts = folder.read(_rows, items, options.workers)

    def images() -> Iterator[AnnotatedMedia]:
        with folder:
            for location, values in listed:
                number, ids = values["image_id"], ids_in_image_data(values)
                texts = {
                    name: (rows[-1].location, rows[-1].text)
                    for name in items
                    if (rows := folder[name].find(name, str(number)))
                }
                keys = {f"{of}_id": int(number) for of, _, number in (each.partition(":") for each in sorted(ids))}
                yield AnnotatedMedia(
                    vg_names(number, ids), location, (keys, (values["width"], values["height"]), texts)
                )

    return Source(images(), convert, len(listed), counts)


def read_image_data(file: RawFile) -> list[tuple[str, dict[str, Any]]]:
    """Returns the images with their locations.

    Raises:
        UserError: the file is not Visual Genome's list of images.
    """
    found = []
    with official_pieces(file, "Visual Genome") as pieces:
        for piece in pieces:
            width, height = annotated_size(piece.value)
            known = {"image_id": needed_id(piece.value["image_id"]), "width": width, "height": height}
            found.append((piece.location, {**piece.value, **known}))
    return found


def _rows(name: str, file: RawFile, counts: Counts) -> Iterator[KeyedRow]:
    """Yields the items of a file by image. An item contains the list ``name``; a file without any such item is not Visual
    Genome's."""
    fitting = False
    with official_pieces(file, "Visual Genome") as pieces:
        for piece in pieces:
            value = piece.value if isinstance(piece.value, dict) else {}
            number = id_number(value.get("image_id", value.get("id")))
            if number is not None and isinstance(value.get(name), list):
                fitting = True
                yield KeyedRow(name, str(number), piece.location, piece.text)
            else:
                detail = f"no 'image_id' and list {name!r}; keys: {', '.join(value)[:80]}"
                counts.skip("missing key", piece.location, detail)
    if not fitting:
        raise UserError(f"no item has a list {name!r}", where=file, remedy="is it Visual Genome's file?")


def _listed(name: str, texts: Mapping[str, tuple[str, str]], counts: Counts) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the objects of the list ``name`` of an image, with their locations."""
    if name not in texts:
        return
    location, text = texts[name]
    for index, value in enumerate(json.loads(text)[name]):
        counts.read[name] += 1
        if isinstance(value, dict):
            yield f"{location}.{name}[{index}]", value
        else:
            counts.skip("wrong type", f"{location}.{name}[{index}]", f"{str(value)[:40]!r} is not an object")


def _region_record(image: Found, counts: Counts) -> Iterator[dict[str, Any]]:
    ids, size, texts = image.values
    elements = [*_objects(size, texts, counts), *_regions(size, texts, counts)]
    made = Counter("regions" if element["grain"] == "region" else "objects" for element in elements)
    return region_record(image, size, elements, made, counts, **ids)


def _objects(size: tuple[int, int], texts: Mapping[str, tuple[str, str]], counts: Counts) -> Iterator[dict[str, Any]]:
    """Yields the objects of an image. Their attributes are in a separate file, by the id of the object."""
    attributes = {
        number: value.get("attributes")
        for _, value in _listed("attributes", texts, counts)
        if isinstance(number := value.get("object_id"), int)
    }
    for location, value in _listed("objects", texts, counts):
        names = value.get("names")
        name = names[0] if isinstance(names, list) and names else value.get("name")
        element = described_box(size, location, value, name, counts)
        if element is not None:
            number = value.get("object_id")
            described = attributes.get(number) if isinstance(number, int) else None
            yield {**element, **attribute_key(described, location, counts), "grain": "object"}


def _regions(size: tuple[int, int], texts: Mapping[str, tuple[str, str]], counts: Counts) -> Iterator[dict[str, Any]]:
    for location, value in _listed("regions", texts, counts):
        element = described_box(size, location, value, value.get("phrase"), counts)
        if element is not None:
            yield {**element, "grain": "region"}


def described_box(
    size: tuple[int, int], location: str, value: Mapping[str, Any], text: Any, counts: Counts
) -> dict[str, Any] | None:
    """Returns ``caption`` and ``bb`` of a box with its text, in an image of the given width and height in pixels. If the box or
    the text is unusable, counts the reason and returns None. The sides of a box are called w and h in objects, and width and
    height in regions."""
    sides = ("w", "h") if "w" in value else ("width", "height")
    absent = [key for key in ("x", "y", *sides) if value.get(key) is None]
    if absent:
        counts.skip("missing key", location, f"no {', '.join(absent)}; keys: {', '.join(value)[:80]}")
        return None
    if text is None:
        counts.skip("box without text", location)
        return None
    box = clamped_box([value[key] for key in ("x", "y", *sides)], *size, counts, location)
    caption = cleaned_text(text, counts, location) if box is not None else None
    return None if box is None or caption is None else {"caption": caption, "bb": box}


def attribute_key(values: Any, location: str, counts: Counts) -> dict[str, list[str]]:
    """Returns the key ``attributes`` of an element, without empty attributes, or an empty dictionary if all attributes are
    empty."""
    if not isinstance(values, list):
        return {}
    texts = dict.fromkeys(
        text for value in values if (text := cleaned_text(value, counts, f"{location}: attributes")) is not None
    )
    return {"attributes": list(texts)} if texts else {}


def _caption_records(image: Found, counts: Counts) -> Iterator[dict[str, Any]]:
    ids, size, texts = image.values
    regions = sorted(_regions(size, texts, counts), key=lambda region: -region["bb"][2] * region["bb"][3])
    captions: set[str] = set()
    for text in (region["caption"] for region in regions):
        if text in captions:
            counts.skip("duplicate text", texts["regions"][0], repr(text[:80]))
        elif len(captions) == CAPTIONS_OF_AN_IMAGE:
            counts.skip("not of the largest regions", texts["regions"][0], repr(text[:80]))
        else:
            captions.add(text)
            counts.written["captions"] += 1
            yield {"image": image.path, "caption": text, **ids}
    if captions:
        counts.written["images"] += 1
    else:
        counts.skip("image without captions", image.location)


VISUAL_GENOME = DataSet(
    name="visual_genome",
    title="Visual Genome",
    home="visualgenome.org",
    licence="CC BY 4.0",
    files={
        "image_data.json": "sizes of the images, and their ids in COCO and on Flickr",
        "objects.json, attributes.json": "objects with attributes",
        "region_descriptions.json": "described regions",
        "VG_100K/, VG_100K_2/": "images (images.zip, images2.zip), separate or merged",
    },
    sizes={"images": 108_077},
    makes=(
        Records(
            "vg",
            "an image and the description of one of its 8 largest regions (our choice; the authors' choice is not published)",
            files=files_named(images="image_data.json", regions="region_descriptions.json"),
            read=partial(_read, _caption_records),
            image_files=IMAGES,
            batch=BATCH,
        ),
        Records(
            "vg_regions",
            "an image, its objects with attributes, and its described regions",
            files=files_named(
                images="image_data.json",
                objects="objects.json",
                attributes="attributes.json",
                regions="region_descriptions.json",
            ),
            read=partial(_read, _region_record),
            image_files=IMAGES,
            batch=BATCH,
        ),
    ),
    required=VG_SPLITS,
    group="4m",
    paper="0.10M images, 2.0M objects, 3.7M regions",
)
