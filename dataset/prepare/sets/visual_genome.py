"""Visual Genome: objects with attributes and described regions as region records; region descriptions as image-text records."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dataset.prepare.building import Job, Work, image_jobs
from dataset.prepare.cleaning import cleaned_text, placed_box
from dataset.prepare.counts import Counts
from dataset.prepare.held_out import OF_COCO, ids_in_image_data
from dataset.prepare.image_finder import ImageFinder, ImageNames, SetFiles
from dataset.prepare.json_pieces import json_pieces
from dataset.prepare.piece_store import PieceStore
from dataset.prepare.raw_folder import RawFile
from dataset.prepare.reading import read_files
from dataset.prepare.sets.base import DataSet, Opened, Product, Request
from dataset.prepare.stored_size import fit_to_stored
from utils.errors import UserError

IMAGES = SetFiles("vg", re.compile(r"\d{1,7}\.jpg"))
BATCH = 50
"""Images of a job: some 2,500 regions."""

CAPTIONS_OF_AN_IMAGE = 8
"""Region descriptions that become captions of their image, those of the largest boxes. About 770,000 in all, as the 4M set has;
which ones the authors took is not published."""


@dataclass(frozen=True)
class ImageTexts:
    """An image on its way to a worker: the ``path`` that records have, keys with its ids, its size, and the texts of its items in
    the official files by their name, each with its place."""

    path: str
    ids: Mapping[str, int]
    width: int
    height: int
    texts: Mapping[str, tuple[str, str]]


def vg_names(image_id: int, others: frozenset[str] = frozenset()) -> ImageNames:
    """How an image of Visual Genome or GQA is called."""
    return ImageNames(frozenset({f"vg:{image_id}"}) | others, [f"{image_id}.jpg"], f"images/{image_id}.jpg")


def open_captions(request: Request) -> Opened:
    """Image-text records: the descriptions of an image's largest regions, one record for each."""
    return _opened(request, {"regions": "region_descriptions.json"}, _caption_records)


def open_regions(request: Request) -> Opened:
    """Region records, one for each image: its objects with their attributes, and its described regions."""
    names = {"objects": "objects.json", "attributes": "attributes.json", "regions": "region_descriptions.json"}
    return _opened(request, names, partial(fit_to_stored, request.folder, _region_records))


def _opened(request: Request, names: Mapping[str, str], convert: Any) -> Opened:
    listed, *files = request.raw.need("image_data.json", *names.values())
    finder = ImageFinder(request.raw, request.folder, IMAGES, request.held_out, request.excluded, request.verified)

    def work(scratch: Path) -> Work:
        images, counts = read_image_data(listed), Counts()
        folder = tempfile.TemporaryDirectory(prefix="pieces-", dir=scratch)
        named = dict(zip(names, files, strict=True))
        for counted in read_files(partial(_fill_store, Path(folder.name)), named, request.workers):
            counts.add(counted)
        return Work(convert, _jobs(images, folder, names, finder, counts), len(images))

    return Opened([listed, *files], work, finder)


def _fill_store(folder: Path, name: str, file: RawFile) -> Counts:
    """Store the items of a file by image; runs in a worker process."""
    counts = Counts()
    (folder / name).unlink(missing_ok=True)  # what a process left that was killed, for which this one is in
    with PieceStore(folder / name) as store:
        store.fill(_pieces(file, name, counts))
    return counts


def read_image_data(file: RawFile) -> list[tuple[str, dict[str, Any]]]:
    """The images with their places.

    Raises:
        UserError: it is not Visual Genome's list of images.
    """
    found = []
    with file.open() as stream:
        for piece in json_pieces(stream, str(file)):
            place = f"{file}[{piece.key}]"
            try:
                value = {name: int(piece.value[name]) for name in ("image_id", "width", "height")}
            except (KeyError, TypeError, ValueError, OverflowError) as error:
                raise UserError(
                    f"{place} is not as in Visual Genome's image_data.json ({type(error).__name__}: {error})"
                ) from None
            found.append((place, {**piece.value, **value}))
    return found


def _jobs(
    images: list[tuple[str, dict[str, Any]]],
    folder: tempfile.TemporaryDirectory[str],
    names: Iterable[str],
    finder: ImageFinder,
    counts: Counts,
) -> Iterator[Job]:
    """Jobs of :data:`BATCH` images each, in the order of ``images``. The other files may have another: hence the stores in
    ``folder``, which are removed in the end."""
    with folder, ExitStack() as opened:
        stores = {name: opened.enter_context(PieceStore(Path(folder.name, name))) for name in names}

        def item_of(listed: tuple[str, dict[str, Any]], counts: Counts) -> ImageTexts | None:
            place, values = listed
            number, ids = values["image_id"], ids_in_image_data(values)
            path = finder.find(vg_names(number, ids), counts, place)
            if path is None:
                return None
            texts = {name: found for name, store in stores.items() if (found := store.get(number))}
            keys = {f"{of}_id": int(number) for of, _, number in (each.partition(":") for each in sorted(ids))}
            return ImageTexts(path, keys, values["width"], values["height"], texts)

        yield from image_jobs(images, item_of, BATCH, counts)


def _pieces(file: RawFile, name: str, counts: Counts) -> Iterator[tuple[int, str, str]]:
    """The items of a file by image. An item has the list ``name``; a file without any such item is another file."""
    fitting = 0
    with file.open() as stream:
        for piece in json_pieces(stream, str(file)):
            place = f"{file}[{piece.key}]"
            value = piece.value if isinstance(piece.value, dict) else {}
            number, listed = value.get("image_id", value.get("id")), value.get(name)
            if isinstance(number, int) and 0 <= number < 1 << 63 and isinstance(listed, list):
                fitting += 1
                yield number, place, piece.text
            else:
                counts.leave_out(
                    "missing key", place, f"no 'image_id' and list {name!r}; keys: {', '.join(value)[:80]}"
                )
    if not fitting:
        raise UserError(f"{file}: no item has a list {name!r}; is it Visual Genome's file?")


def _listed(image: ImageTexts, name: str, counts: Counts) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of the list ``name`` of an image, with their places."""
    if name not in image.texts:
        return
    place, text = image.texts[name]
    for index, value in enumerate(json.loads(text)[name]):
        counts.read[name] += 1
        if isinstance(value, dict):
            yield f"{place}.{name}[{index}]", value
        else:
            counts.leave_out("wrong type", f"{place}.{name}[{index}]", f"{str(value)[:40]!r} is no object")


def _region_records(items: list[ImageTexts], counts: Counts) -> Iterator[dict[str, Any]]:
    for image in items:
        elements = [*_objects(image, counts), *_regions(image, counts)]
        if not elements:
            counts.leave_out("image without boxes", image.path)
            continue
        counts.made["images"] += 1
        for element in elements:
            counts.made["regions" if element["grain"] == "region" else "objects"] += 1
        yield {"image": image.path, "size": (image.width, image.height), "elems": elements, **image.ids}


def _objects(image: ImageTexts, counts: Counts) -> Iterator[dict[str, Any]]:
    """The objects of an image; their attributes are in a file of their own, by the number of the object."""
    attributes = {
        number: value.get("attributes")
        for _, value in _listed(image, "attributes", counts)
        if isinstance(number := value.get("object_id"), int)
    }
    for place, value in _listed(image, "objects", counts):
        names = value.get("names")
        name = names[0] if isinstance(names, list) and names else value.get("name")
        element = described_box(image.width, image.height, place, value, name, counts)
        if element is not None:
            number = value.get("object_id")
            described = attributes.get(number) if isinstance(number, int) else None
            yield {**element, **attribute_key(described, place, counts), "grain": "object"}


def _regions(image: ImageTexts, counts: Counts) -> Iterator[dict[str, Any]]:
    for place, value in _listed(image, "regions", counts):
        element = described_box(image.width, image.height, place, value, value.get("phrase"), counts)
        if element is not None:
            yield {**element, "grain": "region"}


def described_box(
    width: int, height: int, place: str, value: Mapping[str, Any], text: Any, counts: Counts
) -> dict[str, Any] | None:
    """``caption`` and ``bb`` of a box with its text, in an image of ``width`` x ``height`` pixels; None, and counted, if one is
    unusable. Objects name the sides of their boxes w and h, regions width and height."""
    sides = ("w", "h") if "w" in value else ("width", "height")
    absent = [key for key in ("x", "y", *sides) if value.get(key) is None]
    if absent:
        counts.leave_out("missing key", place, f"no {', '.join(absent)}; keys: {', '.join(value)[:80]}")
        return None
    if text is None:
        counts.leave_out("box without text", place)
        return None
    box = placed_box([value[key] for key in ("x", "y", *sides)], width, height, counts, place)
    caption = cleaned_text(text, counts, place) if box is not None else None
    return None if box is None or caption is None else {"caption": caption, "bb": box}


def attribute_key(values: Any, place: str, counts: Counts) -> dict[str, list[str]]:
    """``attributes`` of an element, without those that are empty; nothing if there are none."""
    if not isinstance(values, list):
        return {}
    texts = dict.fromkeys(
        text for value in values if (text := cleaned_text(value, counts, f"{place}: attributes")) is not None
    )
    return {"attributes": list(texts)} if texts else {}


def _caption_records(items: list[ImageTexts], counts: Counts) -> Iterator[dict[str, Any]]:
    for image in items:
        regions = sorted(_regions(image, counts), key=lambda region: -region["bb"][2] * region["bb"][3])
        texts: set[str] = set()
        for text in (region["caption"] for region in regions):
            if text in texts:
                counts.leave_out("duplicate text", image.texts["regions"][0], repr(text[:80]))
            elif len(texts) == CAPTIONS_OF_AN_IMAGE:
                counts.leave_out("not of the largest regions", image.texts["regions"][0], repr(text[:80]))
            else:
                texts.add(text)
                counts.made["captions"] += 1
                yield {"image": image.path, "caption": text, **image.ids}
        if texts:
            counts.made["images"] += 1
        else:
            counts.leave_out("image without captions", image.path)


VISUAL_GENOME = DataSet(
    title="Visual Genome",
    home="visualgenome.org",
    licence="CC BY 4.0",
    files={
        "image_data.json": "sizes of the images, and their ids in COCO and on Flickr",
        "objects.json, attributes.json": "objects with attributes",
        "region_descriptions.json": "described regions",
        "VG_100K/, VG_100K_2/": "images (images.zip, images2.zip), apart or merged",
    },
    sizes={"images": 108_077},
    products=(
        Product("vg", "an image and the description of one of its largest regions", open_captions),
        Product("vg_regions", "an image, its objects with attributes, and its described regions", open_regions),
    ),
    required=(*OF_COCO, "karpathy_flickr30k"),
)
