"""Objects of any data set in COCO's instances format, and of LVIS, which extends this format.

The format of COCO's files is described at cocodataset.org/#format-data, LVIS's at lvisdataset.org and in its ``lvis-api``. LVIS's
images have ``coco_url`` instead of ``file_name``, ``neg_category_ids`` (categories that were looked for and are not in the
image) and ``not_exhaustive_category_ids`` (categories of which not every object has a box). Its categories have ``synonyms`` and
``def``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from dataset.image_ids import id_number
from dataset.prepare.cleaning import clamped_box, cleaned_text
from dataset.prepare.coco_format import ABSENT, INCOMPLETE, OBJECTS, category_names, rows_of
from dataset.prepare.counts import Counts
from dataset.prepare.declarations import AnnotatedMedia, DataSet, Files, Found, Records, Source, files_named
from dataset.prepare.finders import ANY_IMAGES, names_of_path
from dataset.prepare.held_out import COCO_SPLITS
from dataset.prepare.json_pieces import official_pieces
from dataset.prepare.options import Options
from dataset.prepare.phrases import Phrases
from dataset.prepare.raw_folder import RawFile, RawFolder
from dataset.prepare.region_records import region_record
from dataset.prepare.rows import RowFolder
from dataset.prepare.sets.coco import IMAGES, image_names
from utils.errors import UserError

SUFFIXES = (".json", ".json.gz")
LVIS_FILES = ("lvis_v1_train.json", "lvis_v0.5_train.json")

_MAX_CHECKED = 100
"""Number of annotations that are checked to recognise the format of a file."""

Categories = Mapping[str, list[str]]
"""Maps the id of each category to the texts for its objects: the category's name and its synonyms."""


def _files(raw: RawFolder) -> Files:
    """Finds all files that have images, categories, and annotations with boxes."""
    found = [
        file
        for name in sorted(raw.files)
        if name.endswith(SUFFIXES)
        for file in map(RawFile, raw.files[name])
        if _has_instances(file)
    ]
    if not found:
        raise UserError(
            "no file *.json has the lists images, categories, and annotations with bbox",
            where=", ".join(map(str, raw.roots)),
        )
    return {f"{OBJECTS}_{index}": file for index, file in enumerate(found)}


def _has_instances(file: RawFile) -> bool:
    """Returns True if one of the first annotations of a file looks like COCO's instances. Other annotations may lack a box."""
    seen = 0
    try:
        with official_pieces(file, "COCO") as pieces:
            for piece in pieces:
                if piece.section == "annotations":
                    if isinstance(piece.value, dict) and "bbox" in piece.value and "category_id" in piece.value:
                        return True
                    seen += 1
                    if seen == _MAX_CHECKED:
                        return False
                if not piece.section and isinstance(piece.key, int):
                    return False  # an array
    except UserError:  # JSON lines, or no JSON
        return False
    return False


def read_instances(title: str, from_coco: bool, files: Files, scratch: Path, options: Options) -> Source:
    """Reads the objects of one or more files for region records, one for each image of a file.

    Args:
        title: name of the data set, for error messages.
        from_coco: whether the images are COCO's, each of which has had two names.
        files: the annotation files.
        scratch: folder for temporary files.
        options: the user's options.
    """
    folder = RowFolder(scratch)
    counts = folder.read(partial(rows_of, title), files, options.workers)
    categories: dict[str, Categories] = {}
    for name in files:
        rows = folder[name]
        rows.skip_orphans("annotations", rows, "images", counts)
        synonyms = {row.key: json.loads(row.text) for row in rows.first("synonyms")}
        categories[name] = {
            key: _texts([text, *synonyms.get(key, [])], counts, f"{files[name]}: category {key}")
            for key, text in category_names(rows).items()
        }

    def images() -> Iterator[AnnotatedMedia]:
        with folder:
            for name in files:
                for image in folder[name].first("images"):
                    path = json.loads(image.text)["file_name"]
                    names = names_of_path(path)
                    if from_coco:
                        names = image_names(int(image.key), Path(path).parent.name or "train2017")
                    rows = folder[name].find("annotations", image.key)
                    yield AnnotatedMedia(names, image.location, (name, image.text, rows))

    total = sum(folder[name].count("images") for name in files)
    return Source(images(), partial(_record, categories), total, counts)


def _texts(names: list[Any], counts: Counts, location: str) -> list[str]:
    """Returns the distinct texts of a category. LVIS has names such as ``bow_(weapon)``."""
    texts = (
        cleaned_text(name.replace("_", " ") if isinstance(name, str) else name, counts, location) for name in names
    )
    return list(dict.fromkeys(text for text in texts if text is not None))


def _record(categories_of: Mapping[str, Categories], image: Found, counts: Counts) -> Iterator[dict[str, Any]]:
    name, shown, rows = image.values
    categories, values = categories_of[name], json.loads(shown)
    size = values["width"], values["height"]
    phrases = Phrases(counts)
    incomplete = set(map(str, values.get(INCOMPLETE, ())))
    for row in rows:
        value = json.loads(row.text)
        category = str(id_number(value.get("category_id")))
        texts = categories.get(category)
        if not texts:
            counts.skip("unknown category", row.location, repr(value.get("category_id"))[:40])
            continue
        box = clamped_box(value.get("bbox"), *size, counts, row.location)
        if box is not None:
            element = phrases.add(texts, box, "object", row.location)
            if category in incomplete:
                element["exhaustive"] = False
    made = {"objects": phrases.boxes}
    shown_phrases = len(phrases)
    for category in map(str, values.get(ABSENT, ())):
        if texts := categories.get(category):
            phrases.add_absent(texts, "object")
        else:
            counts.skip("unknown category", image.location, f"{ABSENT} contains {category}")
    made |= {"absent phrases": len(phrases) - shown_phrases} if len(phrases) > shown_phrases else {}
    yield from region_record(image, size, phrases.elements(), made, counts)


INSTANCES = DataSet(
    name="instances",
    title="Objects in COCO's instances format",
    home="cocodataset.org/#format-data",
    licence="same as the converted data set",
    files={
        "*.json": "files with images, categories, and annotations with bbox and category_id; all of them become one folder",
        "images": "in any folders; each path ends like file_name",
    },
    sizes={},
    makes=(
        Records(
            "instances",
            "an image and its objects, one element for each category",
            files=_files,
            read=partial(read_instances, "COCO", False),
            image_files=ANY_IMAGES,
        ),
    ),
)

LVIS = DataSet(
    name="lvis",
    title="LVIS",
    home="www.lvisdataset.org",
    licence="annotations CC BY 4.0; images of COCO under the terms of Flickr",
    files={
        LVIS_FILES[0]: f"objects of 1,203 categories; or {LVIS_FILES[1]}",
        "train2017/, val2017/": "COCO's images",
    },
    sizes={"images": 100_170},
    makes=(
        Records(
            "lvis",
            "an image, and one element for each category with its synonyms, also for categories that are known to be absent",
            files=files_named(objects_0=LVIS_FILES),
            read=partial(read_instances, "LVIS", True),
            image_files=IMAGES,
        ),
    ),
    required=COCO_SPLITS,
)
