"""COCO: captions as image-text records, and objects with captions as region records, from 2014 or 2017 (the same images)."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from dataset.formats.karpathy import KarpathyImage
from dataset.prepare.cleaning import cleaned_text, cleaned_texts
from dataset.prepare.coco_format import category_names, objects_of, rows_of, size_of
from dataset.prepare.counts import Counts
from dataset.prepare.declarations import AnnotatedMedia, DataSet, Files, Found, Records, Source, files_named
from dataset.prepare.finders import ImageFiles, MediaNames
from dataset.prepare.held_out import COCO_SPLITS
from dataset.prepare.json_pieces import official_pieces
from dataset.prepare.line_shards import Convert
from dataset.prepare.options import Options
from dataset.prepare.raw_folder import RawFolder
from dataset.prepare.region_records import region_record
from dataset.prepare.rows import KeyedRow, RowFolder
from utils.errors import UserError

SPLITS_2014, SPLITS_2017 = ("train2014", "val2014"), ("train2017", "val2017")
IMAGES = ImageFiles("coco", re.compile(r"(?:COCO_(?:train|val)2014_)?\d{12}\.jpg"))


def image_names(image_id: int, split: str) -> MediaNames:
    """Returns the possible names of a COCO image: its name from 2014, or from 2017, when all images were renamed."""
    short_name = f"{image_id:012}.jpg"
    years_2014 = [f"COCO_{each}_{short_name}" for each in SPLITS_2014]
    usual = f"{split}/{short_name}" if split.endswith("2017") else f"{split}/COCO_{split}_{short_name}"
    return MediaNames(frozenset({f"coco:{image_id}"}), [*years_2014, short_name], usual)


def _files(*contents: str) -> Callable[[RawFolder], Files]:
    """Returns a function that finds the files of the ``contents``, "captions" and "objects", of one year."""

    def find(raw: RawFolder) -> Files:
        years = (SPLITS_2014, SPLITS_2017)
        complete = (splits for splits in years if any(raw.find(f"captions_{split}.json") for split in splits))
        splits = next(complete, SPLITS_2014)
        official = {"captions": "captions", "objects": "instances"}
        names = {f"{each}_{split}": f"{official[each]}_{split}.json" for each in contents for split in splits}
        return files_named(**names)(raw)

    return find


def _read(convert: Callable[[Mapping[str, str]], Convert], files: Files, scratch: Path, options: Options) -> Source:
    """Reads the images in the order of their ids; given the names of the categories, ``convert`` returns the function that
    converts them."""
    folder = RowFolder(scratch)
    counts = folder.read(partial(rows_of, "COCO"), files, options.workers)
    images: dict[int, tuple[str, KeyedRow]] = {}
    categories: dict[str, str] = {}
    for name, file in files.items():
        unit, _, split = name.partition("_")
        captions = folder[f"captions_{split}"]
        folder[name].skip_orphans("annotations", captions, "images", counts)
        if unit == "objects":
            categories |= category_names(folder[name])
            continue
        found = {int(row.key): (split, row) for row in captions.first("images")}
        if found.keys() <= images.keys():
            raise UserError(f"{file} has the images of another file", remedy="is it COCO's file?")
        images |= found

    def annotated() -> Iterator[AnnotatedMedia]:
        with folder:
            for number, (split, row) in sorted(images.items()):
                rows = {
                    name.partition("_")[0]: folder[name].find("annotations", row.key)
                    for name in files
                    if name.endswith(split)
                }
                yield AnnotatedMedia(image_names(number, split), row.location, (number, row.text, rows))

    return Source(annotated(), convert(categories), len(images), counts)


def _captions_of(image: Found, counts: Counts) -> list[str]:
    """Returns the distinct captions of an image."""
    _, _, rows = image.values
    texts = []
    for row in rows["captions"]:
        value = json.loads(row.text)
        if "caption" in value:
            texts.append(value["caption"])
        else:
            counts.skip("missing key", row.location, "no 'caption'")
    return cleaned_texts(texts, counts, f"{image.location}: captions")


def _caption_records(image: Found, counts: Counts) -> Iterator[dict[str, Any]]:
    number, _, _ = image.values
    texts = _captions_of(image, counts)
    if not texts:
        counts.skip("image without captions", image.location)
        return
    counts.written["images"] += 1
    for text in texts:
        counts.written["captions"] += 1
        yield {"image": image.path, "caption": text, "coco_id": number}


def _object_record(categories: Mapping[str, str], image: Found, counts: Counts) -> Iterator[dict[str, Any]]:
    number, shown, rows = image.values
    size = size_of(shown)
    elements = objects_of(rows["objects"], categories, size, counts)
    captions = _captions_of(image, counts)
    made = {"objects": len(elements)}
    return region_record(image, size, elements, made, counts, captions, coco_id=number)


def _read_validation(files: Files, scratch: Path, options: Options) -> Source:
    """Reads the images of Karpathy's validation split."""
    [file] = files.values()
    images: dict[int, AnnotatedMedia] = {}
    with official_pieces(file, "Karpathy", "images") as pieces:
        for image in (KarpathyImage(piece.row) for piece in pieces):
            if image.split == "val":
                number, names = image.coco_id, image_names(image.coco_id, image.folder)
                images[number] = AnnotatedMedia(names, image.row.location, (number, image.captions))
    return Source([images[number] for number in sorted(images)], _validation_record, len(images))


def _validation_record(image: Found, counts: Counts) -> Iterator[dict[str, Any]]:
    number, captions = image.values
    counts.read["captions"] += len(captions)
    texts = [text for text in (cleaned_text(each, counts, image.location) for each in captions) if text]
    if texts:
        counts.written["images"] += 1
        counts.written["captions"] += len(texts)
        yield {"image": image.path, "caption": texts, "coco_id": number}


COCO = DataSet(
    name="coco",
    title="COCO",
    home="cocodataset.org",
    licence="annotations CC BY 4.0; images under the terms of Flickr",
    files={
        "captions_train2014.json, captions_val2014.json": "captions (annotations_trainval2014.zip); or the files of 2017",
        "instances_train2014.json, instances_val2014.json": "objects (the same archive)",
        "dataset_coco.json": "Karpathy's split (caption_datasets.zip)",
        "train2014/, val2014/": "images (train2014.zip, val2014.zip)",
    },
    sizes={"images": 123_287},
    makes=(
        Records(
            "coco",
            "an image and one of its captions",
            files=_files("captions"),
            read=partial(_read, lambda categories: _caption_records),
            image_files=IMAGES,
        ),
        Records(
            "coco_regions",
            "an image, its captions, and its objects without crowds",
            files=_files("captions", "objects"),
            read=partial(_read, lambda categories: partial(_object_record, categories)),
            image_files=IMAGES,
        ),
        Records(
            "coco_val",
            "an image of Karpathy's validation split and its captions, for evaluation",
            files=files_named(karpathy="dataset_coco.json"),
            read=_read_validation,
            image_files=IMAGES,
            held_out_split="karpathy_coco",
        ),
    ),
    required=COCO_SPLITS,
    group="4m",
    paper="0.11M images, 0.55M captions, 0.45M objects",
)
