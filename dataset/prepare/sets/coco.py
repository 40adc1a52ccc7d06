"""COCO: captions as image-text records, objects with captions as region records; of 2014 or of 2017 (the same images)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from dataset.prepare.building import Job, Work, image_jobs
from dataset.prepare.cleaning import cleaned_text, cleaned_texts, placed_box
from dataset.prepare.counts import Counts
from dataset.prepare.held_out import OF_COCO, HeldOut
from dataset.prepare.image_finder import ImageFinder, ImageNames, SetFiles
from dataset.prepare.json_pieces import json_pieces
from dataset.prepare.raw_folder import RawFile, RawFolder
from dataset.prepare.reading import read_files
from dataset.prepare.sets.base import DataSet, Opened, Product, Request
from dataset.prepare.stored_size import fit_to_stored
from utils.errors import UserError

SPLITS_2014, SPLITS_2017 = ("train2014", "val2014"), ("train2017", "val2017")
IMAGES = SetFiles("coco", re.compile(r"(?:COCO_(?:train|val)2014_)?\d{12}\.jpg"))
BATCH = 200
"""Images of a job."""


def image_names(image_id: int, split: str) -> ImageNames:
    """How a COCO image may be called: by its name of 2014, or of 2017, when all were named anew."""
    bare = f"{image_id:012}.jpg"
    years_2014 = [f"COCO_{each}_{bare}" for each in SPLITS_2014]
    usual = f"{split}/{bare}" if split.endswith("2017") else f"{split}/COCO_{split}_{bare}"
    return ImageNames(frozenset({f"coco:{image_id}"}), [*years_2014, bare], usual)


_Object = tuple[str, str, Any]
"""Place, name and box of an object."""


@dataclass
class _Image:
    """An image of the annotation files, with all that they say of it."""

    place: str
    split: str
    width: int
    height: int
    captions: list[Any] = field(default_factory=list)
    objects: list[_Object] = field(default_factory=list)


def open_captions(request: Request) -> Opened:
    """Image-text records, one for each caption."""
    files = _caption_files(request.raw)
    return _opened(request, files, {}, _caption_records)


def open_objects(request: Request) -> Opened:
    """Region records, one for each image: its objects, and its captions as those of the whole image."""
    captions = _caption_files(request.raw)
    instances = {split: request.raw.need(f"instances_{split}.json")[0] for split in captions}
    return _opened(request, captions, instances, partial(fit_to_stored, request.folder, _object_records))


def open_validation(request: Request) -> Opened:
    """Image-text records of Karpathy's validation images, one for each with all of its captions."""
    [file] = request.raw.need("dataset_coco.json")
    # Held out is what is wanted here.
    finder = ImageFinder(request.raw, request.folder, IMAGES, HeldOut(), request.excluded, request.verified)

    def work(_: Path) -> Work:
        images = _read_validation(file)
        return Work(_validation_records, coco_jobs(images, finder, Counts()), len(images))

    return Opened([file], work, finder)


def _read_validation(file: RawFile) -> dict[int, _Image]:
    images = {}
    with file.open() as stream:
        for piece in json_pieces(stream, str(file)):
            if piece.section != "images":
                continue
            place = f"{file}: images[{piece.key}]"
            try:
                if piece.value["split"] == "val":
                    texts = [sentence["raw"] for sentence in piece.value["sentences"]]
                    images[int(piece.value["cocoid"])] = _Image(place, str(piece.value["filepath"]), 0, 0, texts)
            except (KeyError, TypeError, ValueError, OverflowError) as error:
                raise UserError(
                    f"{place} is not as in Karpathy's dataset_coco.json ({type(error).__name__}: {error})"
                ) from None
    return images


def _validation_records(items: list[tuple[str, int, _Image]], counts: Counts) -> Iterator[dict[str, Any]]:
    for path, number, image in items:
        counts.read["captions"] += len(image.captions)
        texts = [text for text in (cleaned_text(each, counts, image.place) for each in image.captions) if text]
        if texts:
            counts.made["images"] += 1
            counts.made["captions"] += len(texts)
            yield {"image": path, "caption": texts, "coco_id": number}


def _caption_files(raw: RawFolder) -> dict[str, RawFile]:
    """The captions of training and validation images, of one year."""
    years = (SPLITS_2014, SPLITS_2017)
    there = (splits for splits in years if any(raw.find(f"captions_{split}.json") for split in splits))
    splits = next(there, SPLITS_2014)
    return dict(zip(splits, raw.need(*(f"captions_{split}.json" for split in splits)), strict=True))


def _opened(
    request: Request, captions: Mapping[str, RawFile], instances: Mapping[str, RawFile], convert: Any
) -> Opened:
    finder = ImageFinder(request.raw, request.folder, IMAGES, request.held_out, request.excluded, request.verified)

    def work(_: Path) -> Work:
        counts = Counts()
        images: dict[int, _Image] = {}
        results = read_files(_read_captions, captions, request.workers)
        for file, (found, counted) in zip(captions.values(), results, strict=True):
            if found.keys() <= images.keys():
                raise UserError(f"{file} has the images of another file; is it COCO's file?")
            images |= found
            counts.add(counted)
        for objects, counted in read_files(_read_objects, instances, request.workers):
            counts.add(counted)
            _add_objects(objects, images, counts)
        return Work(convert, coco_jobs(images, finder, counts), len(images))

    return Opened([*captions.values(), *instances.values()], work, finder)


def _read_captions(split: str, file: RawFile) -> tuple[dict[int, _Image], Counts]:
    """The images of a file with their captions; runs in a worker process."""
    images, counts = _read_images(split, file), Counts()
    for place, value in _annotations(file, counts):
        counts.read["captions"] += 1
        number = value.get("image_id")
        if not isinstance(number, int) or number not in images:
            _leave_out_of_no_image(number, counts, place)
        elif "caption" not in value:
            counts.leave_out("missing key", place, f"no 'caption'; keys: {', '.join(value)[:80]}")
        else:
            images[number].captions.append(value["caption"])
    return images, counts


def _read_images(split: str, file: RawFile) -> dict[int, _Image]:
    images: dict[int, _Image] = {}
    with file.open() as stream:
        for piece in json_pieces(stream, str(file)):
            if piece.section == "annotations" and images:
                break  # the images are through, and the rest is long
            if piece.section != "images":
                continue
            value, place = piece.value, f"{file}: images[{piece.key}]"
            try:
                images[int(value["id"])] = _Image(place, split, int(value["width"]), int(value["height"]))
            except (KeyError, TypeError, ValueError, OverflowError) as error:
                raise UserError(f"{place} is not as in COCO's file ({type(error).__name__}: {error})") from None
    if not images:
        raise UserError(f"{file} has no list 'images'; is it COCO's file?")
    return images


def _read_objects(split: str, file: RawFile) -> tuple[dict[int, list[_Object]], Counts]:
    """The objects of a file by their image; runs in a worker process. Categories stand at its end: names are looked up when it is
    through."""
    counts = Counts()
    found: list[tuple[int, str, Any, Any]] = []
    categories: list[Any] = []
    for place, value in _annotations(file, counts, categories):
        counts.read["objects"] += 1
        number = value.get("image_id")
        if not isinstance(number, int):
            _leave_out_of_no_image(number, counts, place)
        elif value.get("iscrowd"):
            counts.leave_out("crowd", place)
        else:
            found.append((number, place, value.get("category_id"), value.get("bbox")))
    names = _names(categories, file)
    objects: dict[int, list[_Object]] = {}
    for number, place, category, box in found:
        if not isinstance(category, int) or category not in names:
            counts.leave_out("unknown category", place, repr(category)[:40])
        else:
            objects.setdefault(number, []).append((place, names[category], box))
    return objects, counts


def _add_objects(objects: Mapping[int, list[_Object]], images: Mapping[int, _Image], counts: Counts) -> None:
    for number, of_image in objects.items():
        if number in images:
            images[number].objects += of_image
        else:
            for place, *_ in of_image:
                _leave_out_of_no_image(number, counts, place)


def _names(categories: list[Any], file: RawFile) -> dict[int, str]:
    if not categories:
        raise UserError(f"{file} has no list 'categories'; is it COCO's file of instances?")
    try:
        return {value["id"]: value["name"] for value in categories}
    except (KeyError, TypeError) as error:
        raise UserError(f"{file}: categories are not as in COCO's file ({type(error).__name__}: {error})") from None


def _annotations(
    file: RawFile, counts: Counts, categories: list[Any] | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of the list ``annotations`` with their places; those of the list ``categories`` are put into that list."""
    there, name = False, str(file)
    with file.open() as stream:
        for piece in json_pieces(stream, name):
            if piece.section == "categories" and categories is not None:
                categories.append(piece.value)
            if piece.section != "annotations":
                continue
            there, place = True, f"{name}: annotations[{piece.key}]"
            if isinstance(piece.value, dict):
                yield place, piece.value
            else:
                counts.leave_out("wrong type", place, f"{piece.text[:40]} is no object")
    if not there:
        raise UserError(f"{file} has no annotations; is it COCO's file?")


def _leave_out_of_no_image(number: Any, counts: Counts, place: str) -> None:
    counts.leave_out("missing key" if number is None else "unknown image", place, f"image_id is {number!r}")


def coco_jobs(images: Mapping[int, Any], finder: ImageFinder, counts: Counts) -> Iterator[Job]:
    """Jobs of images by number, whose values have ``place`` and ``split``; ``counts``: what was counted before."""

    def item_of(numbered: tuple[int, Any], counts: Counts) -> tuple[str, int, Any] | None:
        number, image = numbered
        path = finder.find(image_names(number, image.split), counts, image.place)
        return None if path is None else (path, number, image)

    return image_jobs(sorted(images.items()), item_of, BATCH, counts)


def _caption_records(items: list[tuple[str, int, _Image]], counts: Counts) -> Iterator[dict[str, Any]]:
    for path, number, image in items:
        texts = cleaned_texts(image.captions, counts, f"{image.place}: captions")
        if not texts:
            counts.leave_out("image without captions", image.place)
            continue
        counts.made["images"] += 1
        for text in texts:
            counts.made["captions"] += 1
            yield {"image": path, "caption": text, "coco_id": number}


def _object_records(items: list[tuple[str, int, _Image]], counts: Counts) -> Iterator[dict[str, Any]]:
    for path, number, image in items:
        elements = []
        for place, name, value in image.objects:
            box = placed_box(value, image.width, image.height, counts, place)
            if box is not None:
                elements.append({"caption": name, "bb": box, "grain": "object"})
        texts = cleaned_texts(image.captions, counts, f"{image.place}: captions")
        if not elements:
            counts.leave_out("image without boxes", image.place)
            continue
        counts.made["images"] += 1
        counts.made["objects"] += len(elements)
        size = image.width, image.height
        yield {
            "image": path,
            **({"caption": texts} if texts else {}),
            "size": size,
            "elems": elements,
            "coco_id": number,
        }


COCO = DataSet(
    title="COCO",
    home="cocodataset.org",
    licence="annotations CC BY 4.0; images under the terms of Flickr",
    files={
        "captions_train2014.json, captions_val2014.json": "captions (annotations_trainval2014.zip)",
        "instances_train2014.json, instances_val2014.json": "objects (the same archive)",
        "dataset_coco.json": "Karpathy's split (caption_datasets.zip)",
        "train2014/, val2014/": "images (train2014.zip, val2014.zip)",
    },
    sizes={"images": 123_287},
    products=(
        Product("coco", "an image and one of its captions", open_captions),
        Product("coco_regions", "an image, its captions, and its objects", open_objects),
        Product(
            "coco_val",
            "an image that Karpathy validates on and its captions, to measure on",
            open_validation,
            measures="karpathy_coco",
        ),
    ),
    required=OF_COCO,
)
